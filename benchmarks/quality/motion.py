"""What the optimizer does while gamma rises: the gradient it gets, and how far it moves the LoRA.

AdamW divides a gradient by its own recent size, so a loss weight near 0 need not make steps small. This module measures
whether it does. In: a run's gradients and steps, and their table relative to DreamBooth's. Not in: what the weights do
to pictures (`unit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from apt_train.names import step_folder
from apt_train.run.folder import RunFolder
from apt_train.verdict.run_log import RunLog

from .curves import BASELINE, Mean, key_of

Part = dict[str, float]
SHOWN = (100, 400, 800, 1200)
"""Ends of the intervals that the table shows, where a run reaches them."""


def motion_of(folder: RunFolder, log: RunLog, steps: Sequence[int]) -> list[Part]:
    """One entry per pair of neighbouring snapshots at `steps`, ascending.

    `step`: the later one. `gradient`: median norm before clipping. `moved`: norm of the LoRA's total change, over down
    and up matrices. `gamma`: mean over the bins at the end (0 where the run has none).
    """
    found, files = [], {step: step_folder(folder.snapshots, step) / folder.lora.name for step in steps}
    for before, after in pairwise(steps):
        within = (log.step > before) & (log.step <= after)
        found.append(
            {
                "step": after,
                "gradient": float(np.nanmedian(log.grad_norm[within])),
                "moved": _distance(files[before], files[after]),
                "gamma": float(log.gamma[within][-1].mean()) if log.gamma.size else 0.0,
            }
        )
    return found


def _distance(one: Path, other: Path) -> float:
    """Distance between two LoRA files with the same layers."""
    first, second = load_file(one), load_file(other)
    return float(sum((first[name].double() - second[name].double()).square().sum() for name in first)) ** 0.5


def motion_table(units: Sequence[dict[str, Any]]) -> str:
    """By variant and step: gradient and LoRA movement as multiples of DreamBooth's on the same subject and seed."""
    by_variant: dict[str, dict[tuple[str, int, int], Part]] = {}
    for unit in units:
        parts = by_variant.setdefault(unit["unit"]["variant"], {})
        parts.update({(*key_of(unit), int(part["step"])): part for part in unit.get("motion", ())})
    base = by_variant.get(BASELINE, {})
    steps = [step for step in SHOWN if any(place[-1] == step for place in base)]
    heads = ["variant", "n", *(f"{name}, {step}" for step in steps for name in ("mean gamma", "gradient", "moved"))]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for variant, mine in by_variant.items():
        shared = [place for place in mine if place in base]
        cells = [cell for step in steps for cell in _cells([(mine[p], base[p]) for p in shared if p[-1] == step])]
        if shared:
            lines.append([variant, str(len({place[:-1] for place in shared})), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(pairs: Sequence[tuple[Part, Part]]) -> list[str]:
    gamma = Mean.of([ours["gamma"] for ours, _ in pairs])
    ratios = [Mean.of([ours[name] / theirs[name] for ours, theirs in pairs]) for name in ("gradient", "moved")]
    return [f"{gamma.mean:.2f}", *(f"{ratio.mean:.2g} ±{ratio.half:.1g}" for ratio in ratios)]

"""Run directories as training leaves them, with curves of a chosen kind: what the report's tests read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from apt_train.config import TrainConfig
from apt_train.training.terms import Alignment, Denoising, Preservation, Stabilization

Line = dict[str, Any]
TERMS = (Denoising(), Stabilization(0.01), Alignment(0.01), Preservation())


def plausible_log(
    steps: int,
    *,
    bins: int = 10,
    rise: float = 400.0,
    ceiling: tuple[float, float] = (0.98, 0.4),
    loss_drop: float = 0.3,
    regularised: bool = True,
    lazy: int = 1,
    balance_every: int = 50,
    ratios: tuple[float, float] | None = None,
    seed: int = 0,
) -> list[Line]:
    """Lines of a log: gamma of bin b climbs to between the ceilings (low and high timesteps) with time constant `rise`.

    The denoising loss depends on the timestep, scatters, and falls by the part `loss_drop` over the run. `ratios`: of
    the drift, at the start and at the end, measured every 50 steps.
    """
    draws = np.random.default_rng(seed)
    top = np.linspace(*ceiling, bins)
    speed = np.linspace(1.0, 3.0, bins) * rise
    lines = []
    for step in range(1, steps + 1):
        timestep = int(draws.integers(1000))
        level = 0.35 * np.exp(-timestep / 150) + 0.02
        denoising = level * (1 - loss_drop * step / steps) * draws.lognormal(0, 0.25)
        gamma = np.clip(top * (1 - np.exp(-step / speed)) + draws.normal(0, 0.008, bins) * (step > 1), 0, 1)
        measured = regularised and (step - 1) % lazy == 0
        stabilization = 0.4 * (1 - np.exp(-step / 200)) * draws.lognormal(0, 0.4) if measured else None
        alignment = 0.02 * (1 - np.exp(-step / 300)) * draws.lognormal(0, 0.4) if measured else None
        weight = 1 - gamma[timestep * bins // 1000]
        line: Line = {
            "step": step, "loss": weight * denoising + (stabilization or 0) + (alignment or 0), "denoising": denoising,
            "stabilization": stabilization, "alignment": alignment, "grad_norm": 0.8 * draws.lognormal(0, 0.4),
            "lr": 5e-5, "timestep": [timestep], "gamma": gamma.tolist(),
        }  # fmt: skip
        if balance_every and step % balance_every == 0:
            parts = (
                {"denoising": 0.5 * weight, "stabilization": 0.25, "alignment": 0.15}
                if regularised
                else {"denoising": 0.5}
            )
            line["grad_norm_terms"] = {name: size * draws.lognormal(0, 0.2) for name, size in parts.items()}
        if ratios and step % 50 == 0:
            subject = 0.02 * (1 - np.exp(-step / 300))
            ratio = float(np.interp(step, (0, steps), ratios))
            line["drift"] = {"subject": subject, "unrelated": subject * ratio, "ratio": ratio}
        lines.append(line)
    return lines


def write_run(folder: Path, lines: list[Line], config: TrainConfig | None = None) -> Path:
    """`log.jsonl` and `config.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or TrainConfig(class_word="toy", steps=lines[-1]["step"])
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    terms = {term.name: {"title": term.title, "colour": term.colour} for term in TERMS}
    content = {"format": 1, "config": config.to_dict(), "terms": terms}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def plausible_maps(columns: int, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    """Prior and tuned maps whose columns sum to 1 at every place: blobs, the tuned one's context tokens dimmed."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    centres = [(0.7 * np.cos(2.4 * c), 0.7 * np.sin(2.4 * c)) for c in range(columns)]
    blobs = torch.stack([torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) * 6) + 0.03 for cx, cy in centres])
    dimmed = blobs * torch.linspace(1.0, 0.3, columns)[:, None, None]
    return blobs / blobs.sum(0), dimmed / dimmed.sum(0)


def write_attention(folder: Path, labels: list[str], with_picture: bool = False) -> None:
    prior, tuned = plausible_maps(len(labels))
    tensors = {"prior": prior, "tuned": tuned}
    if with_picture:
        tensors["image"] = (torch.arange(3 * 64 * 64).reshape(3, 64, 64) % 256).to(torch.uint8)
    save_file(tensors, folder / "attention.safetensors", {"labels": json.dumps(labels)})

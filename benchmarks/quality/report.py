"""The report of a grid's units: `table.md`, `figure.png` and `summary.json` in the same folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from apt_train.disk.files import atomic_write, write_text
from apt_train.errors import InputError

from .curves import BASELINE, LEVELS, Curve, curves_of, floors_of, last_step
from .figure import cost_of_fidelity
from .grid import Grid
from .store import read_units
from .tables import bins_table, level_table, numbers, step_table


def write_report(name: str, grid: Grid, folder: Path) -> str:
    """Write the three files and return the tables. InputError: the grid has no unit yet."""
    units = read_units(folder, grid)
    curves = curves_of(units)
    if not curves:
        raise InputError(f"{folder} holds no trained unit of the grid {name} with its prior: run it first.")
    last = last_step(curves)
    parts = [
        f"`{name}`: {len(units)} of {len(grid.units())} units.",
        f"At step {last}, means with 95% intervals:",
        step_table(units, curves, last),
    ]
    for level in LEVELS:
        parts += [
            f"At equal fidelity ({level:.0%} of the way from the prior to {BASELINE}'s best), differences to "
            f"{BASELINE}, paired by subject and seed; bold where all got there and the 95% interval leaves zero out:",
            level_table(curves, level),
        ]
    parts += [f"Drift on other prompts by bin of the noise level at step {last}, x 1000:", bins_table(units, last)]
    text = "\n\n".join(parts)
    picture = cost_of_fidelity(_complete(curves), floors_of(units), f"{name}: what fidelity costs")
    summary = json.dumps({"grid": name, "units": len(units), **numbers(units, curves)}, indent=1) + "\n"
    write_text(folder / "table.md", text + "\n")
    write_text(folder / "summary.json", summary)
    atomic_write(folder / "figure.png", lambda temporary: picture.save(temporary, format="PNG"))
    return text


def _complete(curves: Sequence[Curve]) -> list[Curve]:
    """Without the variants that lack runs which others have: on one axis such means would mislead."""
    runs = Counter(curve.variant for curve in curves)
    return [curve for curve in curves if runs[curve.variant] == max(runs.values())]

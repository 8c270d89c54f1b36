"""Units on disk: one small JSON each, in a folder per grid; what is there is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apt_train.files import atomic_write

from .grid import Grid, Unit

RESULTS = Path(__file__).parents[1] / "results" / "quality"


def missing(folder: Path, grid: Grid) -> list[Unit]:
    """The grid's units that have no file yet, in the grid's order."""
    return [unit for unit in grid.units() if not unit_path(folder, unit).exists()]


def write_unit(folder: Path, unit: Unit, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, separators=(",", ":")) + "\n"
    atomic_write(unit_path(folder, unit), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_units(folder: Path, grid: Grid) -> list[dict[str, Any]]:
    """The grid's units that are there; files of units that are no longer in the grid are left alone."""
    paths = (unit_path(folder, unit) for unit in grid.units())
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def unit_path(folder: Path, unit: Unit) -> Path:
    return folder / f"{unit.name}.json"

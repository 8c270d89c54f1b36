"""Units on disk: one small JSON file each, in a folder per grid. An existing unit is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apt_train.disk.files import write_text
from apt_train.errors import InputError

from .grid import Grid, Unit

RESULTS = Path(__file__).parents[1] / "results" / "quality"


def missing(folder: Path, grid: Grid) -> list[Unit]:
    """The grid's units that have no file yet, in the grid's order. InputError: see `read_units`."""
    read_units(folder, grid)
    return [unit for unit in grid.units() if not unit_path(folder, unit).exists()]


def write_unit(folder: Path, grid: Grid, unit: Unit, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"made": grid.digest(unit), **record}, separators=(",", ":")) + "\n"
    write_text(unit_path(folder, unit), text)


def read_units(folder: Path, grid: Grid) -> list[dict[str, Any]]:
    """The grid's units on disk. Files of units that have left the grid are ignored.

    InputError: a unit was made with settings other than the grid's, so it must not count.
    """
    found = []
    for unit in grid.units():
        path = unit_path(folder, unit)
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["made"] != grid.digest(unit):
                raise InputError(f"{path} was made by other settings: remove it, or name another folder with --out.")
            found.append(record)
    return found


def unit_path(folder: Path, unit: Unit) -> Path:
    return folder / f"{unit.name}.json"

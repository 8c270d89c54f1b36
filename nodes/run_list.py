"""The runs in `output/apt_train`, by folder name.

In: names only, so that the editor's list does not load anything that reads runs. Not in: a run's contents
(`run_store`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..apt_train import names
from ..apt_train.errors import InputError
from .host.folders import runs_folder
from .live import RUN_ID


def list_runs() -> list[str]:
    """The folder names of all runs, most recently written first."""
    try:
        found = [folder for folder in runs_folder().iterdir() if RUN_ID.fullmatch(folder.name) and holds_run(folder)]
    except OSError:
        return []
    return [folder.name for folder in sorted(found, key=lambda folder: (-_written(folder), folder.name))]


def find_run(name: str) -> Path:
    """The folder of the run with this name. InputError: there is none."""
    if not RUN_ID.fullmatch(name) or not holds_run(runs_folder() / name):
        raise InputError(f"There is no run {name[:200]!r} in output/apt_train: choose one of the list, or press R.")
    return runs_folder() / name


def _written(folder: Path) -> float:
    for name in (names.LOG, names.CONFIG):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0.0


def holds_run(folder: Path) -> bool:
    """Whether a run began there; it may have been killed before it saved a step."""
    return (folder / names.CONFIG).is_file()

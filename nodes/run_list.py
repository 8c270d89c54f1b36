"""Which runs lie in `output/apt_train`, by the names of their folders.

In: names alone, so that the list for the editor is there without anything that reads a run. Not in: what a run holds
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
    """The folders of all runs, by name; the one that was written to last comes first."""
    try:
        found = [folder for folder in runs_folder().iterdir() if RUN_ID.fullmatch(folder.name) and holds_run(folder)]
    except OSError:
        return []
    return [folder.name for folder in sorted(found, key=lambda folder: (-_written(folder), folder.name))]


def find_run(name: str) -> Path:
    """The folder of a run by its name. InputError: there is none of that name."""
    if not RUN_ID.fullmatch(name) or not holds_run(runs_folder() / name):
        raise InputError(f"There is no run {name[:200]!r} in output/apt_train: choose one of the list, or press R.")
    return runs_folder() / name


def _written(folder: Path) -> float:
    for name in (names.LOG, names.CONFIG):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0.0


def holds_run(folder: Path) -> bool:
    """Whether a run began there, though it may have been killed before it saved a step."""
    return (folder / names.CONFIG).is_file()

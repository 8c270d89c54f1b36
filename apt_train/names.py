"""File names of a run, the subject names that would collide with them, and the words of a prompt for a subject.

Writers, readers and the settings' check all use this one list. Not here: file contents.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import InputError
from .paths import check_file_name

CONFIG, LOG, LOCK, LOCK_WITHOUT_SYSTEM = "config.json", "log.jsonl", ".lock", ".lock.json"
NOTICES = "notices.jsonl"
SNAPSHOTS, PREVIEWS = "snapshots", "previews"
ATTENTION = "attention.safetensors"
FILMSTRIP, REPORT, REPORT_NUMBERS = "filmstrip.png", "report.md", "report.json"
STATE_TENSORS, STATE_VALUES, CHECKSUMS = "state.safetensors", "state.json", "checksums.json"

RUN_FILES = (
    CONFIG, LOG, NOTICES, LOCK, LOCK_WITHOUT_SYSTEM, ATTENTION, REPORT, REPORT_NUMBERS,
    "indicator.png", "drift.png", "losses.png", "balance.png", "attention.png", FILMSTRIP,
)  # fmt: skip
RUN_FOLDERS = (SNAPSHOTS, PREVIEWS)
SNAPSHOT_FILES = (STATE_TENSORS, STATE_VALUES, CHECKSUMS)

EMBEDDING = "embedding:"  # ComfyUI's prefix for a learned word in prompts; case is ignored
EMBEDDING_SUFFIX = "_embedding"
MOST_LETTERS = 150  # the nodes add up to 30 letters to a name, and 200 are addressable
_SNAPSHOT = re.compile(r"step_([0-9]{6,9})")


def plain_trigger(name: str, class_word: str) -> str:
    """How prompts name a subject that has no learned word."""
    return f"{name} {class_word}"


def lora_file(name: str) -> str:
    return f"{name}.safetensors"


def embedding_stem(name: str) -> str:
    """The name, without extension, of the file that holds the learned embedding."""
    return name + EMBEDDING_SUFFIX


def embedding_file(name: str) -> str:
    return f"{embedding_stem(name)}.safetensors"


def clashing_file(name: str) -> str | None:
    """The run's own file that a subject of this name would overwrite, or None.

    Case is ignored, because the file systems of Windows and macOS ignore it.
    """
    ours = {file.lower() for file in (*RUN_FILES, *RUN_FOLDERS, *SNAPSHOT_FILES)}
    return next((file for file in (lora_file(name).lower(), embedding_file(name).lower()) if file in ours), None)


def check_subject_name(name: str) -> None:
    """InputError: the name's files would overwrite the run's own, or some system could not store them."""
    clash = clashing_file(name)
    if clash is not None:
        raise InputError(f"identifier is {name!r}, but every run has its own {clash}: choose another name.")
    for file in (lora_file(name), embedding_file(name)):
        check_file_name(file)
    if len(name) > MOST_LETTERS:
        raise InputError(f"identifier is {len(name)} letters long: choose a name of at most {MOST_LETTERS}.")


def step_folder(snapshots: Path, step: int) -> Path:
    """A snapshot's folder."""
    return snapshots / f"step_{step:06d}"


def snapshot_folders(snapshots: Path) -> dict[int, Path]:
    """The snapshot folders by step, ascending.

    Only exact names count. Copies such as `step_000005 copy`, `step_best` or `step_5` belong to the user.
    """
    found: dict[int, Path] = {}
    for path in snapshots.iterdir() if snapshots.is_dir() else ():
        match = _SNAPSHOT.fullmatch(path.name)
        if match and path.is_dir() and step_folder(snapshots, int(match[1])) == path:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def snapshot_steps(folder: Path) -> list[int]:
    """The steps of a run's snapshots, ascending."""
    return list(snapshot_folders(folder / SNAPSHOTS))

"""A run's snapshots: writing, finding and checking them.

A snapshot folder `step_000500` holds the LoRA and the embedding (kept for good, with checksums) and, in the newest two,
the state to resume from. A folder is written under another name and then renamed, so one with its proper name is
complete.

In: the folders, and which of them can be used. Not in: what a state is (`state`), the LoRA file (`export`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..disk.files import atomic_folder, patiently, write_text
from ..disk.json_file import read_small_json
from ..disk.tensor_file import sha256_of_file
from ..disk.tensor_writer import data_digest
from ..errors import InputError
from ..names import CHECKSUMS, STATE_TENSORS, STATE_VALUES, snapshot_folders, step_folder
from .state import MOST_BYTES, Damaged, State, Training, kept_sha256, of_right_size, read_fitting, write_state

FORMAT = 1  # of checksums.json
KEPT_STATES = 2


def write_snapshot(snapshots: Path, state: State, files: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write a snapshot folder; `files`: file name -> function that writes that path. Keeps only the two newest states.

    Anything already in the snapshot's place is set aside. InputError: the disk or the folder takes no files.
    """
    folder = step_folder(snapshots, state.step)
    if os.path.lexists(folder):
        set_aside(folder)
    with atomic_folder(folder) as draft:
        for name, write in files.items():
            write(draft / name)
        sums = {name: sha256_of_file(draft / name) for name in files}
        write_text(draft / CHECKSUMS, json.dumps({"format": FORMAT, "sha256": sums}))
        write_state(draft, state)
    drop_old_states(snapshots)
    return folder


def drop_old_states(snapshots: Path) -> None:
    """Remove all states but the newest two, including one whose removal was interrupted."""
    folders = list(snapshot_folders(snapshots).values())
    kept = [folder for folder in folders if (folder / STATE_VALUES).exists()][-KEPT_STATES:]
    for folder in folders:
        for name in (STATE_VALUES, STATE_TENSORS) if kept and folder not in kept else ():
            with contextlib.suppress(OSError):  # open in another program: the next snapshot removes it
                (folder / name).unlink(missing_ok=True)


def read_newest_state(snapshots: Path, run: Training) -> tuple[State | None, list[str]]:
    """The newest state that the run could have written, and for every newer snapshot why its state cannot be used.

    None: there is no usable state. InputError: another version wrote it.
    """
    reasons: list[str] = []
    for step, folder in reversed(snapshot_folders(snapshots).items()):
        try:
            if not (folder / STATE_VALUES).exists():
                raise Damaged(f"{STATE_VALUES} is missing")
            state = read_fitting(run, folder)
            if state.step != step:
                raise Damaged(f"{STATE_VALUES} is of step {state.step}")
            return state, reasons
        except Damaged as fault:
            reasons.append(f"step {step}: {fault}")
    return None, reasons


def set_aside_newer(snapshots: Path, step: int) -> list[Path]:
    """Rename the snapshots beyond `step`, because a resumed run writes its own. Returns the new paths."""
    return [set_aside(folder) for at, folder in snapshot_folders(snapshots).items() if at > step]


def set_aside(path: Path) -> Path:
    """Rename whatever is in a snapshot's place, losing nothing. Returns the new path. InputError: it fails."""
    number, place = 1, path.with_name(f"{path.name}_set_aside")
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}_set_aside_{number}")
    try:
        patiently(os.rename, path, place)
    except OSError as error:
        raise InputError(f"{path} is in the way of a snapshot ({error.strerror}): move it away.") from None
    return place


def check_kept(file: Path) -> None:
    """Verify a snapshot's LoRA or embedding before use. Damaged: it is not what was written.

    Snapshots of earlier versions have no checksums, but their LoRA holds the digest of its own tensors.
    """
    sums = _checksums(file.with_name(CHECKSUMS))
    if not file.is_file():
        raise Damaged(f"{file.name} is missing")
    if sums is not None:
        if sums.get(file.name.lower()) != kept_sha256(file):
            raise Damaged(f"{file.name} does not match its checksum")
        return
    opened = of_right_size(file)
    try:
        tensors, digest = opened.load(opened.shapes), opened.metadata.get("sshs_model_hash")
    except (InputError, OSError) as error:
        raise Damaged(f"{file.name} cannot be read") from error
    if not tensors or not all(torch.isfinite(tensor.float()).all() for tensor in tensors.values()):
        raise Damaged(f"{file.name} holds values that training never has")
    if digest is not None and digest != data_digest(tensors):
        raise Damaged(f"{file.name} does not match its checksum")


def fault_in(folder: Path, files: list[str]) -> str | None:
    """What is wrong with a snapshot's LoRA or embedding, in a few words; None: they are exactly as written."""
    try:
        for name in files:
            check_kept(folder / name)
    except Damaged as fault:
        return str(fault)
    return None


def _checksums(path: Path) -> dict[str, str] | None:
    """Checksums by lower-case file name, as some file systems ignore case; None: from an earlier version."""
    if not path.exists():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = read_small_json(path, MOST_BYTES)
        if content["format"] == FORMAT:
            return {name.lower(): value for name, value in content["sha256"].items()}
    raise Damaged(f"{path.name} cannot be read")

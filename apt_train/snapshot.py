"""The full state of a run, as safetensors and JSON: taken, written, read, put back.

A snapshot folder `step_000500` holds the LoRA and the embedding (kept for good) and, in the newest two, the state to
resume from. A folder is written under another name and renamed, so one with its proper name is whole.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .files import atomic_folder, remove
from .run_folder import step_folder
from .setup import Run
from .tensor_writer import write_tensors

KEPT_STATES = 2


@dataclass(frozen=True)
class State:
    """Everything the next step depends on, on the CPU."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @property
    def step(self) -> int:
        return self.values["step"]


def take_state(run: Run) -> State:
    """Copy a run's state: parameters, optimizer moments, indicator, scaler, number of variants in the bank.

    Random generators are not in it: every draw is seeded by its step.
    """
    tensors = {name: _copy(parameter) for name, parameter in run.trainable.items()}
    for name, parameter in run.trainable.items():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = _copy(value)
    values = {
        "step": run.steps_done,
        "indicator": run.indicator.state_dict(),
        "variants": run.subject.bank.variants,
        "scaler": run.scaler.state_dict(),
    }
    return State(tensors, values)


def restore_state(run: Run, state: State) -> None:
    """Put a state back into a run made from the same inputs."""
    with torch.no_grad():
        for name, parameter in run.trainable.items():
            parameter.copy_(state.tensors[name])
    for name, tensor in state.tensors.items():
        if name.startswith("optimizer/"):
            _, key, owner = name.split("/", 2)
            parameter = run.trainable[owner]
            # AdamW keeps its step count on the CPU, its moments beside the parameter.
            device = "cpu" if key == "step" else parameter.device
            run.optimizer.state[parameter][key] = tensor.to(device, copy=True)
    run.indicator.load_state_dict(state.values["indicator"])
    run.scaler.load_state_dict(state.values["scaler"])
    run.subject.bank.ensure_variants(state.values["variants"])
    run.steps_done = state.step


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def write_snapshot(snapshots: Path, state: State, files: dict[str, Any]) -> Path:
    """Write a snapshot folder; `files`: file name -> function that writes that path. Older states beyond two go."""
    folder = step_folder(snapshots, state.step)
    with atomic_folder(folder) as draft:
        for name, write in files.items():
            write(draft / name)
        write_tensors(draft / "state.safetensors", state.tensors)
        (draft / "state.json").write_text(json.dumps(state.values))
    drop_old_states(snapshots)
    return folder


def drop_old_states(snapshots: Path) -> None:
    """Remove the states beyond the newest two, also one whose removal was broken off half-way."""
    kept = _state_folders(snapshots)[:KEPT_STATES]
    for state in (*snapshots.glob("step_*/state.json"), *snapshots.glob("step_*/state.safetensors")):
        if kept and state.parent not in kept:
            with contextlib.suppress(OSError):  # open in another program: it goes with the next snapshot
                state.unlink()


def _state_folders(snapshots: Path) -> list[Path]:
    """Snapshot folders with a resumable state, newest first."""
    folders = [path.parent for path in snapshots.glob("step_*/state.json")]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def read_newest_state(snapshots: Path) -> State | None:
    """The newest state that can be read; a damaged one makes way for the one before it. None: there is none."""
    for folder in _state_folders(snapshots):
        try:
            values = json.loads((folder / "state.json").read_text())
            return State(load_file(folder / "state.safetensors"), values)
        except (OSError, ValueError, SafetensorError):
            continue
    return None


def drop_newer(snapshots: Path, step: int) -> None:
    """Remove snapshots beyond `step`: a damaged one that a resumed run will write again."""
    for folder in snapshots.glob("step_*"):
        if folder.name.removeprefix("step_").isdigit() and int(folder.name.removeprefix("step_")) > step:
            remove(folder)

"""The full state of a run: taken, written with checksums, read, checked, restored.

    state.safetensors  parameters and optimizer moments
    state.json         {format, step, indicator, variants, scaler, optimizer, tensors_sha256, sha256}; the last covers
                       all others. Format 1 has no `optimizer`: the settings are then those of the run

In: the state of one snapshot. Not in: choosing the snapshot (`snapshot`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ..disk.files import write_text
from ..disk.json_file import is_list, is_object, read_small_json
from ..disk.tensor_file import TensorFile, open_tensor_file, read_tensors, sha256_of_file
from ..disk.tensor_writer import write_tensors
from ..errors import InputError
from ..names import STATE_TENSORS, STATE_VALUES
from . import optimizer_state

if TYPE_CHECKING:
    from ..data.latent_bank import LatentBank

FORMAT = 2
MOST_TENSOR_BYTES = 16 << 30  # of a LoRA: SDXL's at rank 1024 has 11 GB; a state's limit depends on its run
MOST_BYTES = 16 << 20  # of state.json, which consists mostly of a number per timestep bin
_VALUES = {"step", "indicator", "variants", "scaler"}  # all that states of the first versions hold, not even a checksum
_OF_FORMAT = {1: _VALUES | {"tensors_sha256"}, FORMAT: _VALUES | {"optimizer", "tensors_sha256"}}


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, _: Any, /) -> Any: ...


class Training(Protocol):
    """What a state is taken from and restored into: training between two steps."""

    trainable: dict[str, Parameter]
    optimizer: Optimizer
    steps_done: int

    @property
    def indicator(self) -> _Stateful: ...

    @property
    def scaler(self) -> _Stateful: ...

    @property
    def bank(self) -> LatentBank: ...


class Damaged(Exception):
    """Says in a few words what is wrong with a file that a run wrote."""


@dataclass(frozen=True)
class State:
    """Everything the next step depends on, on the CPU."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @property
    def step(self) -> int:
        return self.values["step"]


def take_state(run: Training) -> State:
    """Copy a run's state: parameters, optimizer moments, indicator, scaler, number of variants in the bank.

    Random generators are not part of it: every draw is seeded by its step.
    """
    moments, settings = optimizer_state.take(run.optimizer, run.trainable)
    both = {**run.trainable, **moments}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in both.items()}
    values = {
        "step": run.steps_done,
        "indicator": run.indicator.state_dict(),
        "variants": run.bank.variants,
        "scaler": run.scaler.state_dict(),
        "optimizer": settings,
    }
    return State(tensors, values)


def restore_state(run: Training, state: State) -> None:
    """Restore a checked state into a run made from the same inputs."""
    with torch.no_grad():
        for name, parameter in run.trainable.items():
            parameter.copy_(state.tensors[name])
    optimizer_state.put_back(run.optimizer, run.trainable, state.tensors, state.values.get("optimizer", {}))
    run.indicator.load_state_dict(state.values["indicator"])
    run.scaler.load_state_dict(state.values["scaler"])
    run.bank.ensure_variants(state.values["variants"])
    run.steps_done = state.step


def write_state(folder: Path, state: State) -> None:
    """Write a state's two files into a folder."""
    write_tensors(folder / STATE_TENSORS, state.tensors)
    content = {"format": FORMAT, **state.values, "tensors_sha256": sha256_of_file(folder / STATE_TENSORS)}
    text = json.dumps({**content, "sha256": _digest(content)})
    write_text(folder / STATE_VALUES, text)


def read_state(folder: Path, most_bytes: int = MOST_TENSOR_BYTES) -> State:
    """A state from disk. Damaged: it is not what was written; InputError: a newer version wrote it.

    `most_bytes`: the most that its tensors may take.
    """
    values = _read_values(folder / STATE_VALUES)
    tensors = folder / STATE_TENSORS
    try:
        digest = kept_sha256(tensors, most_bytes)
        if values.pop("tensors_sha256", digest) != digest:
            raise Damaged(f"{STATE_TENSORS} does not match its checksum")
        return State(read_tensors(tensors)[0], values)  # copies: a mapped file could not be removed on Windows
    except (OSError, InputError) as error:
        raise Damaged(f"{STATE_TENSORS} cannot be read") from error


def read_fitting(run: Training, folder: Path) -> State:
    """A state from disk that this run could have written. Damaged: it is none; InputError: as in `read_state`."""
    state = read_state(folder, most_state_bytes(run))
    check_state(run, state)
    return state


def check_state(run: Training, state: State) -> None:
    """Damaged: this run could not have written the state, judging by names, shapes, types and values."""
    _check_tensors(run, state.tensors)
    values = state.values
    sound = type(values["step"]) is int and values["step"] >= 1
    sound &= type(values["variants"]) is int and values["variants"] >= 0
    sound &= _is_like(values["indicator"], run.indicator.state_dict())
    sound &= _is_like(values["scaler"], run.scaler.state_dict())
    sound &= "optimizer" not in values or _is_like_optimizer(values["optimizer"], run)
    if not sound:
        raise Damaged(f"{STATE_VALUES} does not fit the run")


def most_state_bytes(run: Training) -> int:
    """The most bytes a tensor file of this run's state can have: parameters and moments, plus the header."""
    kept = [*run.trainable.values(), *(tensor for moments in _moments(run).values() for tensor in moments.values())]
    return sum(tensor.nbytes for tensor in kept) + (16 << 20)


def _moments(run: Training) -> dict[str, dict[str, Tensor]]:
    """Per parameter, what the optimizer keeps for it, by name in the file and without data."""
    return {
        name: {f"{optimizer_state.PREFIX}{key}/{name}": tensor for key, tensor in kept.items()}
        for name, kept in optimizer_state.kept_for(run.optimizer, run.trainable).items()
    }


def kept_sha256(path: Path, most_bytes: int = MOST_TENSOR_BYTES) -> str:
    """SHA-256 of a safetensors file, in hex. Damaged: not such a file, too large, or not the size its header says.

    The header is checked first, because a file blown up to a terabyte would take hours to read.
    """
    of_right_size(path, most_bytes)
    return sha256_of_file(path)


def of_right_size(path: Path, most_bytes: int = MOST_TENSOR_BYTES) -> TensorFile:
    """The opened file. Damaged: not a safetensors file, too large, or not the size its header says."""
    try:
        file = open_tensor_file(path)
    except InputError:
        raise Damaged(f"{path.name} is not a safetensors file, or cut short") from None
    if file.size > most_bytes:
        raise Damaged(f"{path.name} is larger than any that was written")
    if path.stat().st_size != file.size:
        raise Damaged(f"{path.name} has another size than was written")
    return file


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_values(path: Path) -> dict[str, Any]:
    try:
        content = read_small_json(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name} cannot be read") from error
    if not is_object(content):
        raise Damaged(f"{path.name} holds no values")
    if content.keys() == _VALUES:
        return content
    claimed = content.pop("sha256", None)
    if _digest(content) != claimed:
        raise Damaged(f"{path.name} does not match its checksum")
    if content.keys() - {"format"} != _OF_FORMAT.get(content.pop("format", None)):
        raise InputError(f"{path} was written by another version of APT Train: go on with the version that wrote it.")
    return content


def _check_tensors(run: Training, tensors: dict[str, Tensor]) -> None:
    expected: dict[str, Tensor] = dict(run.trainable)
    for moments in _moments(run).values():
        if moments.keys() & tensors.keys():  # with fp16 all steps so far may have been skipped
            expected |= moments
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise Damaged(f"{name} is {'missing from' if name in expected else 'unknown in'} {STATE_TENSORS}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise Damaged(f"{name} in {STATE_TENSORS} has another shape or type than the run's")
        wide = tensor.half() if tensor.element_size() == 1 else tensor  # torch compares no floats of one byte
        squares = "/exp_avg_sq/" in name and tensor.is_floating_point()  # integers are codes
        if not torch.isfinite(wide).all() or (squares and bool((wide < 0).any())):
            raise Damaged(f"{name} in {STATE_TENSORS} holds values that training never has")


def _is_like_optimizer(value: Any, run: Training) -> bool:
    """Whether the number of groups matches and all parameters are known. Only settings of both torches are compared.

    One that starts as None may have become anything.
    """
    model = optimizer_state.take(run.optimizer, run.trainable)[1]
    if not (is_object(value) and value.keys() == model.keys() and is_object(value["values"])):
        return False
    groups, known = value["groups"], model["groups"]
    if not (is_list(groups) and len(groups) == len(known) and all(is_object(g) for g in groups)):
        return False
    pairs = [(old[key], new[key]) for old, new in zip(groups, known, strict=True) for key in old.keys() & new.keys()]
    fits = all(new is None or old == new or _is_like(old, new) for old, new in pairs)
    return fits and value["values"].keys() <= run.trainable.keys()


def _is_like(value: Any, model: Any) -> bool:
    """Whether a JSON value has the keys, lengths and types of another, and finite numbers."""
    if is_object(model):
        fits = is_object(value) and value.keys() == model.keys()
        return fits and all(_is_like(value[name], model[name]) for name in model)
    if model is None or isinstance(model, str):
        return isinstance(value, type(model))
    if is_list(model):
        return is_list(value) and len(value) == len(model) and all(map(_is_like, value, model))
    if isinstance(model, bool) or isinstance(value, bool):
        return isinstance(model, bool) and isinstance(value, bool)
    return isinstance(value, (int, float)) and abs(value) < 1e300

"""Converts any optimizer's full state to named tensors and plain values, and back.

    optimizer/KEY/PARAMETER   a tensor of the state, in `state.safetensors`
    optimizer                 {groups, values} in `state.json`: the groups' settings, and the state's non-tensor values

In: `state_dict` with parameters by name instead of by number. Not in: files, checksums (`state`).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

PREFIX = "optimizer/"
_BY_DEVICE = ("params", "foreach", "fused", "capturable")  # how a group is computed, which depends on the device
Values = dict[str, Any]


def take(optimizer: Optimizer, names: Mapping[str, Parameter]) -> tuple[dict[str, Tensor], Values]:
    """The state's tensors by name, not copied, and its plain values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Values] = {}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{PREFIX}{key}/{name}"] = value
            else:
                values.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "values": values}


def put_back(optimizer: Optimizer, names: Mapping[str, Parameter], tensors: Mapping[str, Tensor], kept: Values) -> None:
    """The inverse of `take`. Without `groups`, as in states of earlier versions, the optimizer's own stay."""
    by_name = _by_parameter(tensors)
    for name, values in kept.get("values", {}).items():
        by_name.setdefault(name, {}).update(values)
    order = {id(parameter): name for name, parameter in names.items()}
    numbered = [order[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    now = optimizer.state_dict()
    before = kept.get("groups", [{}] * len(now["param_groups"]))
    groups = [{**group, **_like(group, saved)} for group, saved in zip(now["param_groups"], before, strict=True)]
    state = {number: by_name[name] for number, name in enumerate(numbered) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, given in by_name.items():  # torch casts all but steps to the parameter's dtype
        loaded = optimizer.state[names[name]]
        cast = [key for key, value in given.items() if isinstance(value, Tensor) and value.dtype != loaded[key].dtype]
        loaded.update({key: given[key].to(loaded[key].device) for key in cast})


@contextlib.contextmanager
def learning(optimizer: Optimizer) -> Generator[None]:
    """Inside the block the weights are those to take gradients at, afterwards those to use, if they differ."""
    getattr(optimizer, "train", lambda: None)()
    try:
        yield
    finally:
        getattr(optimizer, "eval", lambda: None)()


def kept_for(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors that this optimizer keeps for each parameter, by key, without their data."""
    known = {shape: _kept(optimizer, shape) for shape in {parameter.shape for parameter in parameters.values()}}
    return {name: known[parameter.shape] for name, parameter in parameters.items()}


def _kept(optimizer: Optimizer, shape: torch.Size) -> dict[str, Tensor]:
    """For a parameter of `shape`; found by one step of a twin on zeros."""
    twin = torch.zeros(shape, requires_grad=True)
    twin.grad = torch.zeros_like(twin)
    blank = object.__new__(type(optimizer))  # no constructor: nobody knows what it takes
    group = {**optimizer.param_groups[0], "params": [twin]}
    vars(blank).update({**vars(optimizer), "state": defaultdict(dict), "param_groups": [group]})
    with learning(blank):
        blank.step()
    kept = {key: value for key, value in blank.state[twin].items() if isinstance(value, Tensor)}
    return {key: value.to("meta") for key, value in kept.items()}


def _like(group: Mapping[str, Any], saved: Values) -> Values:
    """Saved settings adapted to a group: JSON turns pairs into lists, and another torch may have other settings.

    Settings that depend on the device are not restored, because a run may be resumed on another one.
    """
    shared = {key: value for key, value in saved.items() if key in group and key not in _BY_DEVICE}
    return {key: tuple(value) if isinstance(group[key], tuple) else value for key, value in shared.items()}


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for whole, tensor in tensors.items():
        if whole.startswith(PREFIX):
            key, name = whole.removeprefix(PREFIX).split("/", 1)
            found.setdefault(name, {})[key] = tensor
    return found

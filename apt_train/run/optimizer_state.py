"""Converts any optimizer's full state to named tensors and plain values, and back.

    optimizer/KEY/PARAMETER   a tensor of the state, in `state.safetensors`
    optimizer                 {groups, values} in `state.json`: the groups' settings, and the state's non-tensor values

In: `state_dict` with parameters by name instead of by number. Not in: files, checksums (`state`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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


def shapes(optimizer: Optimizer, shape: torch.Size) -> dict[str, torch.Size]:
    """Shapes of what this optimizer keeps for a parameter of `shape`, by key; found by one step of a twin on zeros."""
    twin = torch.zeros(shape, requires_grad=True)
    twin.grad = torch.zeros_like(twin)
    taken = inspect.signature(type(optimizer)).parameters
    blank = type(optimizer)([twin], **{key: value for key, value in optimizer.defaults.items() if key in taken})
    blank.step()
    return {key: value.shape for key, value in blank.state[twin].items() if isinstance(value, Tensor)}


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

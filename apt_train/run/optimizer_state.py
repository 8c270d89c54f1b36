"""Converts any optimizer's full state to named tensors and plain values, and back.

    optimizer/KEY/PARAMETER   a tensor of the state, in `state.safetensors`
    optimizer                 {groups, values} in `state.json`: the groups' settings, and the state's non-tensor values

In: `state_dict` with parameters by name instead of by number. Not in: files, checksums (`state`).
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ..disk.tensor_writer import DTYPES
from ..settings_field import is_tuple

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
    full = [_stepped(optimizer, group, group["params"][0])[0].param_groups[0] for group in optimizer.param_groups]
    groups = [{**group, **old} for group, old in zip(now["param_groups"], map(_like, full, before), strict=True)]
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
    """The tensors that this optimizer keeps for each parameter, by key, without their data.

    AssertionError: it keeps something else that a resumed run would not get back.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        one_each = {one.shape: one for one in group["params"]}
        known = {shape: _kept(optimizer, group, one) for shape, one in one_each.items()}
        found |= {id(one): known[one.shape] for one in group["params"]}
    return {name: found[id(parameter)] for name, parameter in parameters.items()}


def _kept(optimizer: Optimizer, group: Values, parameter: Tensor) -> dict[str, Tensor]:
    before = _traces(optimizer)
    stepped, twin = _stepped(optimizer, group, parameter)
    lost = next(_lost(stepped, before, twin), None)
    assert lost is None, f"{type(optimizer).__name__} cannot be resumed: files would not give back {lost}"
    return {key: value.to("meta") for key, value in stepped.state[twin].items() if isinstance(value, Tensor)}


def _stepped(optimizer: Optimizer, group: Values, parameter: Tensor) -> tuple[Optimizer, Tensor]:
    """A twin of an optimizer after one step on zeros, with one parameter of a group; and that parameter."""
    twin = torch.zeros(parameter.shape, device="cpu" if parameter.is_meta else parameter.device, requires_grad=True)
    twin.grad = torch.zeros_like(twin)
    blank = object.__new__(type(optimizer))  # no constructor: nobody knows what it takes
    own = {**copy.deepcopy({key: value for key, value in group.items() if key != "params"}), "params": [twin]}
    vars(blank).update({**vars(optimizer), "state": defaultdict(dict), "param_groups": [own]})
    with learning(blank):
        blank.step()
    return blank, twin


def _lost(stepped: Optimizer, before: dict[str, int], parameter: Tensor) -> Generator[str]:
    """What one step has left anywhere but in `take`, or in a form that files do not give back."""
    yield from (f"the attribute {key}" for key, trace in _traces(stepped).items() if trace != before.get(key))
    yield from (f"the attribute {key}" for key, value in vars(stepped).items() if isinstance(value, Optimizer))
    yield from (f"the state {key}" for key in stepped.state if key is not parameter)
    for key, value in stepped.state[parameter].items():
        if not (type(value) in (Tensor, type(parameter)) and value.dtype in DTYPES or _comes_back(value)):
            yield f"the state {key}"
    for key, value in stepped.param_groups[0].items():
        if key not in ("params", *_BY_DEVICE) and not _comes_back(list(value) if is_tuple(value) else value):
            yield f"the group's {key}"


def _traces(optimizer: Optimizer) -> dict[str, int]:
    """By which to see that an attribute has changed. Flags are left out, as they may say which mode it is in."""
    own = {key: value for key, value in vars(optimizer).items() if key not in ("state", "param_groups")}
    own = {key: value for key, value in own.items() if not isinstance(value, bool)}
    return {key: len(value) if type(value) in (dict, list, defaultdict) else id(value) for key, value in own.items()}


def _comes_back(value: Any) -> bool:
    """Whether JSON gives back an equal value."""
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


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
            key, name = whole.removeprefix(PREFIX).rsplit("/", 1)
            found.setdefault(name, {})[key] = tensor
    return found

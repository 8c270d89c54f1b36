"""What a node is given, in the form that its schema declares, whatever a script or another node sends.

In: wires that carry nothing, kinds of values. Not in: choices and ranges (`checks`), what an object on a wire is worth.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..apt_train.errors import InputError
from ..apt_train.settings_field import require_text

_OF_A_MODEL = ("model", "clip", "vae")
_OBJECTS = {  # what is wired there, and what it has; pictures and masks are looked at one by one (`training.image_set`)
    "model": ("a MODEL", {"model"}),
    "tuned": ("a MODEL or a LORA_MODEL", {"model", "items"}),
    "clip": ("a CLIP", {"cond_stage_model"}),
    "tuned_clip": ("a CLIP", {"cond_stage_model"}),
    "vae": ("a VAE", {"first_stage_model"}),
    "lora": ("a LORA_MODEL", {"items"}),
    "latent": ("a LATENT", {"items"}),
    "run": ("an APT_RUN", {"run_id"}),
    "options": ("an APT_OPTIONS", {"settings"}),
}
_MOST = 1 << 70  # beyond every widget's range


def given(inputs: Mapping[str, Any], schema: Any, may_wait: Callable[[Any], Any]) -> dict[str, Any]:
    """The inputs that the schema has. A widget without a value has its default, an optional wire is left out.

    `may_wait`: whether a slot's None says that it has no value yet. InputError: a required wire carries nothing, or a
    widget's value is of another kind.
    """
    found: dict[str, Any] = {}
    for slot in schema.inputs:
        if slot.id not in inputs:
            continue
        came = inputs[slot.id] if schema.is_input_list else [inputs[slot.id]]
        if may_wait(slot) and any(value is None for value in came):
            found[slot.id] = inputs[slot.id]
        elif values := _values(slot, came):
            found[slot.id] = values if schema.is_input_list else values[0]
    return found


def _values(slot: Any, came: Sequence[Any]) -> list[Any]:
    """The values of a slot; empty: nothing comes, nor needs to."""
    default = getattr(slot, "default", None)
    values = [default if value is None else value for value in came or [None]]
    if not any(value is None for value in values):
        return [_of_its_kind(slot, default, value) for value in values]
    if len(values) == 1 and getattr(slot, "optional", False):
        return []
    if slot.id in _OF_A_MODEL:
        wire = f"The {slot.id.upper()} wire"
        raise InputError(f"{wire} is empty, as the loader before it found none: load a full checkpoint.")
    raise InputError(f"{slot.id} gets nothing from the node before it: change that node, or wire another.")


def _of_its_kind(slot: Any, default: Any, value: Any) -> Any:
    """A widget's value as a plain text, switch or number; what a wire carries as it is. InputError: another kind."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # a number of numpy's or torch's
    is_text = isinstance(default, str) or bool(getattr(slot, "options", None))
    if not (is_text or isinstance(default, (int, float))):
        return _object(slot.id, value)
    texts = (str, list, tuple) if slot.id == "augment_kinds" else str  # older versions saved lists of kinds
    if not isinstance(value, texts if is_text else (int, float)):
        kind = "a text" if is_text else "true or false" if isinstance(default, bool) else "a number"
        raise InputError(f"{slot.id} is {reprlib.repr(value)}: give {kind}.")
    for line in value.splitlines() if isinstance(value, str) else ():  # in some widgets each is a caption or a prompt
        require_text(slot.id, line)
    return value if is_text else _number(slot.id, type(default), value)


def _object(name: str, value: Any) -> Any:
    kind, parts = _OBJECTS.get(name, ("", set[str]()))
    if parts and not any(hasattr(value, part) for part in parts):
        raise InputError(f"{name} is of the type {type(value).__name__}: wire {kind}.")
    if isinstance(value, dict) and not _are_tensors([value.get("samples")] if name == "latent" else value.values()):
        raise InputError(f"{name} holds no tensors, or other things too: wire {kind}.")
    return value


def _are_tensors(values: Collection[Any]) -> bool:
    return bool(values) and all(hasattr(value, "to") for value in values)


def _number(name: str, kind: type[Any], number: Any) -> Any:
    """The number as a bool, an int or a float. One beyond every range, which refuses it, is infinite."""
    if kind is bool:
        return bool(number)
    if not abs(number) < _MOST:
        return math.nan if number != number else math.inf if number > 0 else -math.inf
    if kind is int and number % 1:
        raise InputError(f"{name} is {number}: give a whole number.")
    return kind(number)

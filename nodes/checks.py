"""Checks a node's own widgets when a prompt is queued, so that nothing is loaded for settings that cannot work.

A widget that is wired has no value yet. What depends on it is checked by the node, before it requests the model.

In: choices, ranges, settings that contradict each other. Not in: what needs pictures or the model (`training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..apt_train.errors import InputError
from .settings import settings_shown, train_config
from .wires import AptOptions

_MOST_LISTED = 16  # choices in a sentence
_ANY_CLASS_WORD, _LARGEST_RANK = "thing", 1024  # stand in for values that only a wire or another node knows


def known(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The values on the node itself. The host passes one-element lists here, and None for wired inputs."""
    return {name: values[0] for name, values in inputs.items() if values and values[0] is not None}


def is_wired(inputs: Mapping[str, Any], *names: str) -> bool:
    """Whether one of these inputs is wired and has no value yet: before the node runs, or because it is lazy."""
    return any(list(inputs.get(name, ())) == [None] for name in names)


def single(inputs: Mapping[str, Any], *lists: str) -> dict[str, Any]:
    """The inputs' values, which the host passes in lists. InputError: several values where one counts.

    `lists`: the inputs that may have several. A script's null counts as not given.
    """
    for name, values in inputs.items():
        if values and len(values) > 1 and name not in lists:
            raise InputError(f"{name} gets {len(values)} values at once: give it one at a time.")
    return {name: values[0] for name, values in inputs.items() if values and values[0] is not None}


def check_widgets(shown: Mapping[str, Any], slots: Sequence[Any]) -> None:
    """Check choices and ranges of a node's widgets; a wired one is None. InputError: the first wrong one."""
    check_choices(shown, slots)
    check_ranges(shown, slots)


def check_train(shown: Mapping[str, Any], slots: Sequence[Any]) -> None:
    """Check APT Train's own widgets. InputError: the first that cannot be trained with."""
    check_choices(shown, slots)
    train_config({"class_word": _ANY_CLASS_WORD, **shown}, AptOptions({}))
    check_ranges(shown, slots)


def check_options(shown: Mapping[str, Any], slots: Sequence[Any]) -> None:
    """Check an options node's widgets, except for conflicts with APT Train's own. InputError: the first wrong one."""
    from ..apt_train.data.pictures import parse_color

    check_choices(shown, slots)
    judged = dict(shown)
    if "lr_schedule" not in shown:
        judged.pop("warmup_steps", None)
    train_config({"rank": _LARGEST_RANK, "class_word": _ANY_CLASS_WORD}, AptOptions(settings_shown(judged)))
    parse_color(shown.get("background", "white"))
    check_ranges(shown, slots)


def check_choices(shown: Mapping[str, Any], slots: Sequence[Any]) -> None:
    """Check that combos hold one of their choices; the host skips this for nodes that validate their own inputs."""
    for slot in slots:
        choices, value = getattr(slot, "options", None), shown.get(slot.id)
        takes_lists = slot.id == "augment_kinds"  # older versions saved lists; the setting itself checks them
        if choices and value is not None and value not in choices and not takes_lists:
            listed = ", ".join(choices) if len(choices) <= _MOST_LISTED else "its list"
            raise InputError(f"{slot.id} is {value!r}: choose one of {listed}.")


def check_ranges(shown: Mapping[str, Any], slots: Sequence[Any]) -> None:
    """Check that numbers are within their widgets' range; the host skips this too."""
    for slot in slots:
        low, high, value = getattr(slot, "min", None), getattr(slot, "max", None), shown.get(slot.id)
        if value is not None and low is not None and high is not None and not low <= value <= high:
            raise InputError(f"{slot.id} is {value}: give a number from {low:g} to {high:g}.")

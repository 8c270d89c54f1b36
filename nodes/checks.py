"""What is wrong with a node's own widgets, told when a prompt is queued: nothing is loaded for a mistake that stands.

A widget that a wire decides is not known yet; what depends on it is left to the node, before it asks for the model.

In: choices, ranges, settings that contradict each other. Not in: what needs pictures or the model (`training`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..apt_train.errors import InputError
from .options import settings_shown
from .settings import METHODS, Setting, beside_settings, train_config
from .wires import AptOptions

_MOST_LISTED = 16  # choices in a sentence
_ANY_CLASS_WORD, _LARGEST_RANK = "thing", 1024  # in the place of what only a wire or another node knows


def known(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The values that stand on the node. The host hands lists of one here, and None for what is wired."""
    return {name: values[0] for name, values in inputs.items() if values and values[0] is not None}


def check_train(shown: Mapping[str, Any], main: Iterable[Setting], slots: Iterable[Any]) -> None:
    """APT Train's own widgets. InputError: the first that cannot be trained with."""
    slots = list(slots)
    check_choices(shown, slots)
    values = {setting: shown[setting.name] for setting in main if setting.name in shown}
    values.setdefault(Setting("", "class_word"), _ANY_CLASS_WORD)
    subject, method = shown.get("subject", ""), shown.get("method", next(iter(METHODS)))
    train_config(values, None, subject=subject, method=method, **beside_settings(shown))
    check_ranges(shown, slots)


def check_options(shown: Mapping[str, Any], slots: Iterable[Any]) -> None:
    """An options node's widgets, but for what only APT Train's own contradict. InputError: the first wrong one."""
    from ..apt_train.data.pictures import parse_color

    slots = list(slots)
    check_choices(shown, slots)
    judged = dict(shown)
    if "lr_schedule" not in shown:
        judged.pop("warmup_steps", None)
    main = {Setting("adapter", "rank"): _LARGEST_RANK, Setting("", "class_word"): _ANY_CLASS_WORD}
    train_config(main, AptOptions(settings_shown(judged)), subject="", method=next(iter(METHODS)))
    parse_color(shown.get("background", "white"))
    check_ranges(shown, slots)


def check_choices(shown: Mapping[str, Any], slots: Iterable[Any]) -> None:
    """A combo holds one of its choices: the host leaves that to a node that checks its inputs itself."""
    for slot in slots:
        choices, value = getattr(slot, "options", None), shown.get(slot.id)
        takes_lists = slot.id == "augment_kinds"  # as it was saved by older versions; its setting looks at it
        if choices and value is not None and value not in choices and not takes_lists:
            listed = ", ".join(choices) if len(choices) <= _MOST_LISTED else "its list"
            raise InputError(f"{slot.id} is {value!r}: choose one of {listed}.")


def check_ranges(shown: Mapping[str, Any], slots: Iterable[Any]) -> None:
    """A number is one that its widget can show; the host leaves that, too."""
    for slot in slots:
        low, high, value = getattr(slot, "min", None), getattr(slot, "max", None), shown.get(slot.id)
        if value is not None and low is not None and high is not None and not low <= value <= high:
            raise InputError(f"{slot.id} is {value}: give a number from {low:g} to {high:g}.")

"""Converts the trainer's settings to widgets and back, using only the metadata in the dataclasses.

In: one widget per field by its type, the order of all widgets, and how a node shows an empty field. Not in: which node
shows which setting (`train`, `options`), nor anything specific to one setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any, get_args, get_origin

from comfy_api.latest import io

from ..apt_train.config import METHOD_TITLES, TrainConfig
from ..apt_train.errors import InputError
from ..apt_train.presets import PUBLISHED, preset_named
from ..apt_train.settings_field import (
    Said,
    all_said,
    check_value,
    choices_of,
    fields_of,
    groups_of,
    may_be_empty,
    may_be_float,
    nested,
    said,
    types_of,
    words_in,
)
from .wires import AptOptions

METHODS = {title: method for method, title in METHOD_TITLES.items()}
HEADINGS = ("subject", "APT", "adapter", "optimizer", "data", "performance", "snapshots")  # unknown ones come last
_SWITCH = {"auto": None, "on": True, "off": False}  # for a switch whose value may be left to the trainer


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of `root` or of one of its groups, by its name, which no other field has."""

    name: str
    root: type = TrainConfig

    @property
    def field(self) -> dataclasses.Field[Any]:
        return fields_of(self._home)[self.name]

    @property
    def kind(self) -> Any:
        return types_of(self._home)[self.name]

    @property
    def said(self) -> Said:
        return said(self.field)

    @property
    def heading(self) -> str:
        return self.said.widget.heading or (self._group.metadata["heading"] if self._group else "")

    @property
    def default(self) -> Any:
        """The node's own default, or the field's."""
        own = self.said.widget.default
        return self.field.default if own is None else own

    @property
    def is_switch(self) -> bool:
        """Whether it is on, off, or left to the trainer."""
        return bool in get_args(self.kind)

    @property
    def is_number(self) -> bool:
        """Whether it is shown as a number. One that may also be a word is a text, unless its widget has a step."""
        numbers = {int, float} & {self.kind, *get_args(self.kind)}
        return bool(numbers) and (not words_in(self.kind) or self.said.widget.step is not None)

    @property
    def _home(self) -> Any:
        return types_of(self.root)[self._group.name] if self._group else self.root

    @property
    def _group(self) -> dataclasses.Field[Any] | None:
        groups, types = groups_of(self.root), types_of(self.root)
        return next((group for name, group in groups.items() if self.name in fields_of(types[name])), None)


@cache
def every_setting(root: type = TrainConfig) -> tuple[Setting, ...]:
    """All settings in the order of their widgets.

    A workflow stores widget values by position, so settings of a later round come after all earlier ones.
    """
    found = (Setting(name, root) for name in all_said(root))
    return tuple(sorted(found, key=lambda setting: (setting.said.since, _place(setting.heading))))


def _place(heading: str) -> int:
    return HEADINGS.index(heading) if heading in HEADINGS else len(HEADINGS)


# ---- a setting as a widget ---------------------------------------------------------------------------------------


def widget(setting: Setting, *, label: str | None = None, **more: Any) -> io.Input:
    """The widget of a setting, with its default and help. `label`: replaces its name."""
    name, kind, default = setting.name, setting.kind, _as_shown(setting)
    shared = {"display_name": label, "tooltip": help_of(setting), **more}
    if choices := _choices(setting):
        return io.Combo.Input(name, options=choices, default=default, **shared)
    if kind is bool:
        return io.Boolean.Input(name, default=default, **shared)
    if get_origin(kind) is tuple:
        return io.String.Input(name, default=default, multiline=True, **shared)
    if not setting.is_number:
        return io.String.Input(name, default=default, **shared)
    least, most, step = number_range(setting)
    if may_be_float(kind):
        return io.Float.Input(name, default=float(default), min=least, max=most, step=step, round=False, **shared)
    return io.Int.Input(name, default=int(default), min=int(least), max=int(most), step=int(step), **shared)


def number_range(setting: Setting) -> tuple[float, float, float]:
    """Minimum, maximum and step of a number's widget. The dataclasses check the value again, with a message."""
    about, allowed = setting.said.widget, setting.said.range
    assert allowed is not None, f"{setting.name} is a number: say its range"
    zero_means_more = may_be_empty(setting.kind) or words_in(setting.kind)
    low = 0 if zero_means_more else allowed.above if allowed.low is None else allowed.low
    high = allowed.below if allowed.high is None else allowed.high
    least, most = low if about.least is None else about.least, high if about.most is None else about.most
    assert least is not None and most is not None, f"{setting.name} is a number without an end"
    return least, most, about.step or (0.01 if may_be_float(setting.kind) else 1)


def _choices(setting: Setting) -> list[str]:
    """The choices of its combo; empty: it is not a combo."""
    if setting.is_switch:
        return list(_SWITCH)
    if get_origin(setting.kind) is tuple:
        return _combined(words_in(setting.kind))
    return list(choices_of(setting.field, setting.kind))


def _combined(kinds: tuple[str, ...]) -> list[str]:
    """Every combination of one or more kinds, such as `affine+flip`. The editor's own multi-select starts empty, and
    its newer renderer does not show it."""
    chosen = [some for count in range(1, len(kinds) + 1) for some in combinations(kinds, count)]
    return ["+".join(some) for some in chosen]


def _as_shown(setting: Setting) -> Any:
    """The default as the widget shows it: the inverse of `value_of`."""
    value = setting.default
    if value is dataclasses.MISSING:
        return ""
    if setting.is_switch:
        return next(shown for shown, meant in _SWITCH.items() if meant is value)
    if isinstance(value, tuple):
        return ("+" if words_in(setting.kind) else "\n").join(value)
    if setting.is_number:
        return 0 if value is None or isinstance(value, str) else value
    return f"{value:g}" if isinstance(value, float) else value


def help_of(setting: Setting) -> str:
    """The field's help plus its note for nodes. On a node an empty field is called 0 (or `auto`)."""
    text = " ".join(part for part in (setting.said.help, setting.said.widget.note) if part)
    if may_be_empty(setting.kind):
        return text.replace("Empty:", "auto:" if setting.is_switch else "0:")
    for word in words_in(setting.kind) if setting.is_number else ():
        text = text.replace(f"{word}:", "0:")
    return text


# ---- a setting out of a widget -----------------------------------------------------------------------------------


def value_of(setting: Setting, shown: Any) -> Any:
    """A widget's value in the form the dataclass takes. InputError: a text where a number is needed."""
    words = words_in(setting.kind)
    if setting.is_switch:
        return _SWITCH.get(shown, shown)
    if get_origin(setting.kind) is tuple:
        return (_kinds(shown) or setting.field.default) if words else _lines(shown)
    if setting.is_number and (words or may_be_empty(setting.kind)):
        return shown or (words[0] if words else None)
    return _number_or_word(setting, shown) if words else shown


def settings_shown(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The widgets' values as `AptOptions.settings`; settings that are not shown are omitted."""
    return {one.name: value_of(one, shown[one.name]) for one in every_setting() if one.name in shown}


def _kinds(shown: Any) -> tuple[str, ...]:
    """The kinds in `affine+flip`, or in a list from an older workflow; empty for an empty one."""
    parts = shown if isinstance(shown, (list, tuple)) else str(shown).split("+")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _lines(shown: Any) -> tuple[str, ...]:
    lines = shown.splitlines() if isinstance(shown, str) else shown
    return tuple(line.strip() for line in lines if line.strip())


def _number_or_word(setting: Setting, text: str) -> float | str:
    word = text.strip().lower()
    if word in words_in(setting.kind):
        return word
    try:
        return float(text)
    except ValueError:
        check_value(setting.field, setting.kind, text)
        raise


def train_config(shown: Mapping[str, Any], options: AptOptions) -> TrainConfig:
    """The run's settings: the preset's, overridden by the options nodes', overridden by the training node's own.

    A widget at its default does not count as set by hand, so the preset applies. `shown`: the training node's widgets;
    workflows of older versions lack some. InputError: an invalid value, under its widget's name.
    """
    method = METHODS[shown.get("method", next(iter(METHODS)))]
    given = {**options.settings, **settings_shown(shown), "method": method}
    given |= {"preview_prompts": lines} if (lines := _lines(shown.get("sample_prompts", ""))) else {}
    defaults = {setting.name: setting.default for setting in every_setting()}
    by_hand = {name: value for name, value in given.items() if value != defaults[name]}
    own = {setting.name: setting.default for setting in every_setting() if setting.said.widget.default is not None}
    preset, identifier = preset_named(shown.get("preset", PUBLISHED)), "_".join(shown.get("subject", "").split())
    try:
        return TrainConfig.from_dict(nested({**own, **preset.values, **by_hand, "identifier": identifier}, TrainConfig))
    except InputError as error:
        raise InputError(str(error).replace("identifier is", "subject is", 1)) from None

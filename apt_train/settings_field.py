"""The metadata of a setting: help, range, choices, unit, standing, widget; and the checks derived from it.

The command line, the nodes' widgets, the documentation tables and a run's identity are all made from this metadata.
The settings themselves are in `config`. This module imports only the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeGuard, cast, get_args, get_origin, get_type_hints

from .errors import InputError
from .wording import printable

MOST_TEXTS = 100  # entries in a list; the text encoders read each, and most are drawn or measured
LONGEST_TEXT = 10_000  # letters, also of a caption: each step would encode a longer one for minutes
_SHOWN = 80  # characters of a value in a message


# ---- metadata ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The allowed range of a number. `low` and `high` are inclusive, `above` and `below` exclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """False for NaN."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.below is not None:
            return f"from {self.low} up to, not including, {self.below}"
        return f"above {self.above} and at most {self.high}" if self.low is None else f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Widget:
    """How a node shows a setting.

    `least`, `most`: a number's limits, if not the ends of its range. `step`: the increment of a fractional number. A
    setting that may be a number or a word, and has a `step`, is shown as a number where 0 means the word. `heading`:
    if not its group's. `advanced`: hidden until the node's switch is on. `default`: if it differs on the node.
    `note`: an addition to the help that applies to nodes only.
    """

    least: float | None = None
    most: float | None = None
    step: float | None = None
    heading: str = ""
    advanced: bool = False
    default: Any = None
    note: str = ""


@dataclass(frozen=True)
class Said:
    """The complete metadata of a setting's field.

    `choices`: the allowed texts, if no Literal lists them. `standing`: the source of the default. `more`: what the
    documentation adds to the help. `methods`: the methods that read it; empty: all. `needs`: the setting or input
    that must be on for this one to have an effect, or `name=value`. `moves_weights`: whether the trained weights
    depend on it. `weighs`: the term of the loss that it is the weight of. `runs_prior`: whether the prior pass runs if
    it is on. `since`: the round in which it was added, 0 for the first version. Widgets are ordered by round, because
    workflows store values by position. Older runs do not name newer settings.
    """

    help: str
    range: Range | None = None
    choices: Collection[str] = ()
    unit: str = ""
    standing: str = "ours"
    more: str = ""
    methods: tuple[str, ...] = ()
    needs: str = ""
    moves_weights: bool = True
    weighs: str = ""
    runs_prior: bool = False
    since: int = 0
    widget: Widget = Widget()


def setting(default: Any, help: str, range: Range | None = None, **more: Any) -> Any:
    """A field with its default (MISSING: required) and its metadata; `more` as in `Said`."""
    return field(default=default, metadata={"said": Said(help, range, **more)})


def group(cls: type, *, title: str, heading: str) -> Any:
    """A field that holds a group of settings, called `title` on the command line and `heading` on the nodes."""
    return field(default_factory=cls, metadata={"title": title, "heading": heading})


# ---- reading it --------------------------------------------------------------------------------------------------


@cache
def types_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, cached because resolving them is the slowest thing in this module."""
    return get_type_hints(cls)


@cache
def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """A dataclass's settings by name, without its groups."""
    return {
        item.name: item for item in dataclasses.fields(cls) if not dataclasses.is_dataclass(types_of(cls)[item.name])
    }


@cache
def groups_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """A dataclass's groups of settings by name."""
    return {item.name: item for item in dataclasses.fields(cls) if dataclasses.is_dataclass(types_of(cls)[item.name])}


def said(item: dataclasses.Field[Any]) -> Said:
    return item.metadata["said"]


@cache
def all_said(cls: type) -> dict[str, Said]:
    """The metadata of every setting by name, groups included."""
    found = {name: said(item) for name, item in fields_of(cls).items()}
    for name in groups_of(cls):
        found |= all_said(types_of(cls)[name])
    return found


def choices_of(item: dataclasses.Field[Any], hint: Any) -> tuple[str, ...]:
    """The texts a setting may be; empty if it is not a choice, or may also be a number."""
    named = get_args(hint) if get_origin(hint) is Literal else ()
    return tuple(said(item).choices or named)


def words_in(hint: Any) -> tuple[str, ...]:
    """The texts named inside a type: `auto` beside a number, or the entries a list may hold."""
    literals = [part for part in get_args(hint) if get_origin(part) is Literal]
    return tuple(word for literal in literals for word in get_args(literal))


def may_be_float(hint: Any) -> bool:
    return float in (hint, *get_args(hint))


def may_be_empty(hint: Any) -> bool:
    return type(None) in get_args(hint)


def flat_values(config: Any) -> dict[str, Any]:
    """Every setting's value by name, groups included. No two settings share a name."""
    cls = type(cast("object", config))
    found = {name: getattr(config, name) for name in fields_of(cls)}
    for name in groups_of(cls):
        found |= flat_values(getattr(config, name))
    return found


def nested(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The inverse, for `built`: put settings into their groups. Names that are no setting of `cls` are dropped."""
    own = {name: values[name] for name in fields_of(cls) if name in values}
    return own | {name: nested(values, types_of(cls)[name]) for name in groups_of(cls)}


def hindrance(cls: type, name: str, values: Mapping[str, Any]) -> str:
    """The setting that keeps this one from having an effect, itself or through the one it needs; empty: none does.

    `values`: of all settings by name. Names that are no setting of `cls`, such as an input's, need nothing themselves.
    """
    about = all_said(cls).get(name, Said(""))
    if about.methods and values["method"] not in about.methods:
        return "method"
    needed, _, part = about.needs.partition("=")
    if not needed:
        return ""
    given = values.get(needed)
    is_on = part in (given if is_tuple(given) else (given,)) if part else given
    return hindrance(cls, needed, values) if is_on else needed


def identifying(config: object, method: str) -> dict[str, Any]:
    """The values that the trained weights depend on under a method, nested like the settings.

    A setting from a later round is omitted at its default; otherwise runs begun before it could not be resumed.
    """
    found: dict[str, Any] = {}
    for name, item in fields_of(type(config)).items():
        value, about = getattr(config, name), said(item)
        read = about.moves_weights and method in (about.methods or (method,))
        if read and not (about.since and value == item.default):
            found[name] = value
    inner = {name: identifying(getattr(config, name), method) for name in groups_of(type(config))}
    return found | {name: values for name, values in inner.items() if values}


# ---- checks ------------------------------------------------------------------------------------------------------


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raise InputError with the remedy unless `ok`."""
    if not ok:
        text = value if isinstance(value, str) else _spelled(value)
        raise InputError(f"{name} is {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}: {remedy}.")


def _spelled(value: object) -> str:
    """Its repr. Python refuses to write integers of more than 4300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def check_values(config: object) -> None:
    """Refuse a value of the wrong type, outside its choices or its range; fields without metadata are not looked at.

    A list, also one from JSON, becomes the tuple it stands for.
    """
    hints = types_of(type(config))
    for name in groups_of(type(config)):
        _check_type(name, hints[name], getattr(config, name))
    for name, item in fields_of(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, list):
            value = tuple(cast("list[Any]", value))
            object.__setattr__(config, name, value)  # it is frozen, but not yet in anybody's hands
        if item.metadata:
            check_value(item, hints[name], value)


def check_value(item: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    """Refuse a value this field cannot take. Settings also arrive from JSON and from wires, unchecked."""
    _check_type(item.name, hint, value)
    if is_tuple(value):
        remedy = f"give {MOST_TEXTS} or fewer"
        require(len(value) <= MOST_TEXTS, item.name, f"{len(value)} texts", remedy)
    for text in value if is_tuple(value) else (value,):
        if isinstance(text, str):
            require_text(item.name, text)
    _check_words(item, hint, value)
    _check_range(item, hint, value)


def _check_type(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is tuple:
        ok = is_tuple(value) and all(isinstance(part, str) for part in value)
        require(ok, name, _spelled(value), "give a list of texts")
    else:
        parts = () if get_origin(hint) is Literal else get_args(hint)
        allowed = [_plain_type(part) for part in parts] or [_plain_type(hint)]
        require(any(_is_a(value, kind) for kind in allowed), name, _spelled(value), f"give {_named(allowed)}")


def is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    """Like `isinstance`, but its parts then count as known to be of any type."""
    return isinstance(value, tuple)


def require_text(name: str, text: str) -> None:
    """InputError unless tokenizers can read it and files can hold it: no zero bytes, no lone surrogates, no book."""
    require(len(text) <= LONGEST_TEXT, name, f"{len(text)} letters long", "write some sentences")
    is_text = "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
    require(is_text, name, ascii(text), "leave out what is no letter")


def _plain_type(hint: Any) -> type:
    return str if get_origin(hint) is Literal else hint


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def _named(kinds: list[type]) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}
    return " or ".join(words.get(kind, "its own group of settings") for kind in kinds)


def _check_words(item: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    """Refuse a text that is not among the choices, or is not the word allowed in place of a number."""
    if choices := choices_of(item, hint):
        require(value in choices, item.name, repr(value), "choose one of " + ", ".join(choices))
    words = words_in(hint)
    for part in value if is_tuple(value) and words else ():
        require(part in words, item.name, repr(part), "choose from " + ", ".join(words))
    if words and isinstance(value, str):
        require(value in words, item.name, repr(value), _number_or(words[0], said(item).range or Range()))


def _number_or(word: str, allowed: Range) -> str:
    if allowed.above is not None:
        return f"give a number above {allowed.above}, or {word}"
    return f"give a number of at least {allowed.low}, or {word}"


def _check_range(item: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    allowed = said(item).range
    if allowed is not None and isinstance(value, (int, float)):
        kind = "a number" if may_be_float(hint) else "a whole number"
        require(allowed.holds(value), item.name, value, f"give {kind} {allowed}")


def built(cls: type, values: Any) -> Any:
    """Build a settings dataclass from plain nested values. InputError: an unknown name or an invalid value."""
    require(isinstance(values, dict), cls.__name__, _spelled(values), "give its settings by name")
    hints = types_of(cls)
    unknown = sorted(map(str, set(values) - set(hints)))
    if unknown:
        raise InputError(
            f"{cls.__name__} has no setting named {printable(unknown[0])}: remove it, correct its name, or use the "
            "version of APT Train that knows it."
        )
    for name, item in fields_of(cls).items():
        require(item.default is not dataclasses.MISSING or name in values, name, "missing", "give it")
    ready: dict[str, Any] = {}
    for name, value in values.items():
        ready[name] = built(hints[name], value) if name in groups_of(cls) else value
    return cls(**ready)

"""Checks for settings read from files: small predicates, and a function that applies a table of them to an object.

A check takes a value and returns what may be passed on, or raises `Wrong` with a description of what was wanted. Not
in: the tables (`config_tables`), reading the file (`json_file`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

from ...disk.json_file import AGAIN, is_object, shown, shown_error
from ...errors import InputError

Check = Callable[[Any], Any]
Table = Mapping[str, Check]


class Wrong(Exception):
    """The value is not what the message describes."""


def checked(values: Mapping[str, Any], table: Table, where: str) -> dict[str, Any]:
    """The entries of `values` that the table knows, each as its check returns it; unknown entries are dropped.

    InputError for the first wrong value; `where` names the file in it.
    """
    kept: dict[str, Any] = {}
    for name in filter(values.__contains__, table):
        try:
            kept[name] = table[name](values[name])
        except Wrong as wanted:
            raise InputError(f"{where} has {name} {shown(values[name])} instead of {wanted}: {AGAIN}.") from None
    return kept


@contextlib.contextmanager
def libraries_answer(what: str, advice: str = AGAIN) -> Generator[None]:
    """Turn any exception a library raises over checked settings into an InputError about `what`.

    BaseException is needed because the tokenizers library's panics are not `Exception`s.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} cannot be read ({shown_error(error)}): {advice}.") from None


# -- checks


def _only(wanted: str, fits: Callable[[Any], bool]) -> Check:
    """The value itself where it fits."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise Wrong(wanted)
        return value

    return check


def whole(low: int, high: int) -> Check:
    """An integer; booleans do not count."""
    return _only(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Check:
    wanted = f"a number from {low:g} to {high:g}"
    return _only(wanted, lambda value: type(value) in (int, float) and low <= value <= high)


def text(most: int = 200) -> Check:
    return _only(f"a text of at most {most} characters", lambda value: type(value) is str and len(value) <= most)


def one_of(*words: str) -> Check:
    return _only(" or ".join(words), lambda value: type(value) is str and value in words)


flag = _only("true or false", lambda value: type(value) is bool)
null = _only("null", lambda value: value is None)


def either(*checks: Check) -> Check:
    """The result of the first check that accepts the value."""

    def check(value: Any) -> Any:
        wanted: list[str] = []
        for one in checks:
            try:
                return one(value)
            except Wrong as wrong:
                wanted.append(str(wrong))
        raise Wrong(", or ".join(wanted))

    return check


def optional(check: Check) -> Check:
    return either(null, check)


def several(check: Check, least: int = 1, most: int = 8) -> Check:
    """A list, returned as a tuple."""

    def check_all(value: Any) -> Any:
        if type(value) not in (list, tuple) or not least <= len(value) <= most:
            raise Wrong(f"a list of {least} to {most} values")
        try:
            return tuple(check(item) for item in value)
        except Wrong as wrong:
            raise Wrong(f"a list where each value is {wrong}") from None

    return check_all


def mapping(check: Check, most: int) -> Check:
    """An object with arbitrary names, whose values are all of one kind."""

    def check_all(value: Any) -> Any:
        if not is_object(value) or len(value) > most:
            raise Wrong(f"an object of at most {most} names")
        try:
            return {name: check(item) for name, item in value.items()}
        except Wrong as wrong:
            raise Wrong(f"an object where each value is {wrong}") from None

    return check_all


def record(table: Table, needed: tuple[str, ...] = ()) -> Check:
    """An object with these names; other names are dropped."""

    def check(value: Any) -> Any:
        if not is_object(value):
            raise Wrong("an object")
        for name in needed:
            if name not in value:
                raise Wrong(f"an object with {name}")
        kept: dict[str, Any] = {}
        for name in filter(value.__contains__, table):
            try:
                kept[name] = table[name](value[name])
            except Wrong as wrong:
                raise Wrong(f"an object whose {name} is {wrong}") from None
        return kept

    return check

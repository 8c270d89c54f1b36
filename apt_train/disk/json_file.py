"""Reads one JSON file of a model into an object that is safe for later code, or a small one of a run.

In: faults of the text itself (size, encoding, nesting, duplicate names, invalid numbers). Not in: the meaning of the
values (`config_check`).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import InputError
from ..wording import printable

MAX_DEPTH = 24  # levels of nesting; a tokenizer.json has 6
AGAIN = "download or copy it again"


def read_json_object(path: Path, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """The file's object. InputError: missing, too large, not an object, or anything `parse_json` refuses."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the diffusers folder is incomplete, {AGAIN}.")
    if path.stat().st_size > most_bytes:
        raise InputError(f"{place(path)} has {path.stat().st_size} bytes, more than {most_bytes}: {AGAIN}.")
    try:
        values = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))  # which editors on Windows write
    except ValueError as error:
        raise InputError(f"{place(path)} is no readable JSON ({shown_error(error)}): {AGAIN}.") from None
    if not is_object(values):
        raise InputError(f"{place(path)} holds {kind_of(values)} instead of an object: {AGAIN}.")
    return values


def read_small_json(path: Path, most_bytes: int) -> Any:
    """The value in a file of a run, whatever may lie in its place by now. ValueError: no JSON, or deep nesting.

    OSError: it is missing, larger than `most_bytes`, or not a regular file (a pipe would block).
    """
    found = path.stat()
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", os.fspath(path))
    if found.st_size > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    with contextlib.suppress(RecursionError):
        return json.loads(path.read_bytes())
    raise ValueError("nested too deeply")


def parse_json(raw: bytes) -> Any:
    """The value. ValueError: invalid JSON, deep nesting, a duplicate name, NaN, or a number beyond a float's range."""
    text = raw.decode("utf-8")
    with contextlib.suppress(RecursionError):
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_infinite, parse_float=_finite)
        if not _is_too_deep(value):
            return value
    raise ValueError("its values are nested too deeply")


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value from JSON is an object; its names are then strings."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a JSON list; a tuple is written as one."""
    return isinstance(value, (list, tuple))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it names {shown(twice)} twice")
    return values


def _infinite(text: str) -> float:
    """Infinity as such: diffusers writes it for a bound that a scheduler lacks. No table of settings accepts it."""
    if text == "NaN":
        raise ValueError("NaN is no number")
    return float(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it holds a number beyond a float's range")
    return number


def _is_too_deep(value: Any) -> bool:
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [inner for item in layer for inner in _held(item)]
        if not layer:
            return False
    return any(is_object(item) or is_list(item) for item in layer)


def _held(value: Any) -> Collection[Any]:
    return value.values() if is_object(value) else value if is_list(value) else ()


def place(path: Path) -> str:
    """A file by the last three parts of its path: the model's folder, the part's, its own name."""
    return "/".join(path.parts[-3:])


def shown(value: Any, most: int = 60) -> str:
    """A value from a file, safe for a sentence: one line, short, without characters that control a terminal."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = most
    text = short.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}..."


def shown_error(error: BaseException) -> str:
    """A library's error message, likewise."""
    return short_name(" ".join(str(error).split()).rstrip(".") or type(error).__name__, 120)


def short_name(text: str, most: int = 80) -> str:
    """A name from a file, likewise."""
    plain = printable(text[: most + 1])
    return plain if len(plain) <= most else f"{plain[:most]}..."


def kind_of(value: object) -> str:
    names: dict[type, str] = {
        str: "a string",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "nothing" if value is None else "an object")

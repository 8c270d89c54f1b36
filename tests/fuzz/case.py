"""One case: damage done to a valid sample, as JSON that can be printed, shrunk and run again.

In: the edits and how they are applied to a copy of the sample. Not in: which edits are drawn (`damage`, the targets).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINKED_FROM = 1_000_000  # bytes; larger files of a sample are linked, nothing writes into them
_MARK = "@@RAW@@"


@dataclass(frozen=True)
class Case:
    """Edits, done in order, and what the target is called with beside the folder; both plain JSON."""

    edits: tuple[tuple[Any, ...], ...] = ()
    arguments: Any = None

    def to_json(self) -> str:
        return json.dumps({"edits": self.edits, "arguments": self.arguments})

    @staticmethod
    def from_json(text: str) -> Case:
        values = json.loads(text)
        return Case(tuple(tuple(edit) for edit in values["edits"]), values["arguments"])


def lay_out(sample: Path, folder: Path, case: Case) -> None:
    """A copy of the sample with the case's edits done to it, as far as an earlier one has left their files."""
    shutil.copytree(sample, folder, copy_function=_copy)
    for kind, name, *how in case.edits:
        with contextlib.suppress(OSError):
            EDITS[kind](folder / name, *how)


def _copy(source: str, target: str) -> None:
    if os.path.getsize(source) >= LINKED_FROM:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def packed(content: bytes) -> str:
    """Bytes as text for an edit."""
    return base64.b85encode(zlib.compress(content, 9)).decode()


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def raw_json(text: str) -> str:
    """JSON as it is written into a file; what is too long to print has a short form.

    `@nest N`: N lists in one another. `@long N`: a string of N letters. `@many N TEXT`: a list of N times TEXT.
    """
    kind, _, rest = text.partition(" ")
    if kind == "@nest":
        return "[" * int(rest) + "]" * int(rest)
    if kind == "@long":
        return '"' + "a" * int(rest) + '"'
    if kind == "@many":
        count, _, item = rest.partition(" ")
        return "[" + ",".join([item] * int(count)) + "]"
    return text


# ---- the edits -----------------------------------------------------------------------------------------------


def _put(path: Path, content: bytes) -> None:
    """Never into the file itself, which may be a link to the sample's."""
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _json(path: Path, places: list[Any], action: str, raw: str) -> None:
    _put(path, _edited(_content(path), places, action, raw))


def _header(path: Path, places: list[Any], action: str, raw: str) -> None:
    """The JSON at the head of a safetensors file; the length before it follows."""
    content = _content(path)
    end = 8 + int.from_bytes(content[:8], "little")
    header = _edited(content[8:end], places, action, raw)
    _put(path, struct.pack("<Q", len(header)) + header + content[end:])


def _line(path: Path, number: int, action: str, text: str) -> None:
    """A line of a text file: replaced, put before, deleted, doubled; `text` is JSON in its raw form, or anything."""
    lines = _content(path).split(b"\n")
    place = number % len(lines)
    new = raw_json(text).encode("utf-8", "surrogatepass")
    lines[place : place + 1] = {
        "replace": [new], "insert": [new, lines[place]], "delete": [], "double": [lines[place]] * 2,
        "append": [lines[place] + new],
    }[action]  # fmt: skip
    _put(path, b"\n".join(lines))


def _line_json(path: Path, number: int, places: list[Any], action: str, raw: str) -> None:
    lines = _content(path).split(b"\n")
    place = number % len(lines)
    lines[place] = _edited(lines[place], places, action, raw)
    _put(path, b"\n".join(lines))


def _bytes(path: Path, action: str, place: float, data: str) -> None:
    """At `place`, a part of the length in [0, 1]; `data` is hexadecimal."""
    content, new = bytearray(_content(path)), bytes.fromhex(data)
    at = min(int(place * len(content)), len(content))
    if action == "flip":
        for offset, mask in enumerate(new[: len(content) - at]):
            content[at + offset] ^= mask
    elif action == "insert":
        content[at:at] = new
    elif action == "overwrite":
        content[at : at + len(new)] = new
    elif action == "drop":
        del content[at : at + len(new)]
    elif action == "zero":
        content[at:] = bytes(len(content) - at)
    else:
        del content[at:]
    _put(path, bytes(content))


def _write(path: Path, data: str) -> None:
    _put(path, unpacked(data))


def _text(path: Path, text: str, encoding: str = "utf-8") -> None:
    _put(path, text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace"))


def _folder(path: Path) -> None:
    _remove(path)
    path.mkdir(parents=True)


def _link(path: Path, target: str) -> None:
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _duplicate(path: Path, name: str) -> None:
    """A copy under another name beside it; of a link, the link, as one to its own folder has no end."""
    target = path.with_name(name)
    _remove(target)
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copyfile(path, target, follow_symlinks=False)


def _move(path: Path, name: str) -> None:
    target = path.with_name(name)
    _remove(target)
    path.rename(target)


def _mode(path: Path, mode: int) -> None:
    path.chmod(mode)


EDITS: dict[str, Callable[..., None]] = {
    "json": _json, "header": _header, "line": _line, "line-json": _line_json, "bytes": _bytes, "write": _write,
    "text": _text, "remove": _remove, "folder": _folder, "link": _link, "duplicate": _duplicate, "move": _move,
    "mode": _mode,
}  # fmt: skip


def _edited(content: bytes, places: list[Any], action: str, raw: str) -> bytes:
    """A JSON document with one node set (or made), deleted, renamed to `raw`, or doubled with another value.

    Left as it is where it is no JSON any more, or the node is gone: an earlier edit went before.
    """
    raw = raw_json(raw)
    if not places:
        return raw.encode("utf-8", "surrogatepass")
    try:
        document = json.loads(content)
        *above, last = places
        owner = document
        for place in above:
            owner = owner[place]
        raw = _act(owner, last, action, raw)
        text = json.dumps(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return content
    return text.replace(json.dumps(_MARK), raw).encode("utf-8", "surrogatepass")


def _act(owner: Any, last: Any, action: str, raw: str) -> str:
    """Change the document; what stands for the mark in it."""
    if action == "delete":
        del owner[last]
    elif action == "rename":
        owner[raw] = owner.pop(last)
    elif action == "double" and isinstance(owner, dict):
        raw = f"{json.dumps(owner[last])}, {json.dumps(last)}: {raw}"
        owner[last] = _MARK
    else:
        owner[last] = _MARK
    return raw

"""The text of a caption file: its encoding, its size, and which of several files counts.

In: from files to a single line of text. Not in: which file belongs to which picture (`folder_files`), what a caption
says about the subject (`captions`).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..settings_field import LONGEST_TEXT
from ..wording import printable

MAX_BYTES = 2**16  # a long caption has some hundred words
# UTF-32's byte order mark starts with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_caption(paths: Sequence[Path]) -> tuple[str | None, Path | None]:
    """The first text that is not empty, or None; and the file it came from, if another file disagrees with it.

    Raises:
        InputError: naming the file, if one of them cannot be read as text.
    """
    texts = {path: on_one_line(_read_text(path)) for path in paths}
    counts = next((path for path, text in texts.items() if text), None)
    if counts is None:
        return None, None
    return texts[counts], counts if len(set(texts.values())) > 1 else None


def on_one_line(caption: str | None) -> str | None:
    """The caption with runs of white space as one space; None if it is empty."""
    return " ".join((caption or "").split()) or None


def _read_text(path: Path) -> str:
    name = printable(path.name)
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{name} is not a file: write the caption into a text file of that name, or remove it.")
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): make it readable or remove it.") from error
    if size > MAX_BYTES:
        takes = f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"
        raise InputError(f"{name} takes {takes}, too much for a caption: write some sentences, or remove it.")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8 text: save it as UTF-8.") from None
    if len(text) > LONGEST_TEXT:
        raise InputError(f"{name} has {len(text)} letters, too many for a caption: write some sentences, or remove it.")
    if "\0" in text:  # UTF-16 without its byte order mark, or no text at all
        raise InputError(f"{name} is not UTF-8 text, as it holds zero bytes: save it as UTF-8.")
    return text

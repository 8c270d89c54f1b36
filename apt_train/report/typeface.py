"""The typeface for a text: Pillow's own, or one on the machine that has the letters Pillow's lacks.

In: which typeface, and which letters it has. Not in: layout (`grid`).
"""

from __future__ import annotations

import string
import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_BUILT_IN = frozenset(map(ord, string.printable + "‘’“”…‹›"))
# The first comes with matplotlib: accented Latin, Cyrillic, Greek, Hebrew, Arabic. The others: Chinese, Japanese,
# Korean, as Linux, Windows and macOS bring them.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "SimSun", "PingFang SC",
    "Hiragino Sans GB", "Heiti TC", "Hiragino Sans", "Yu Gothic", "Meiryo", "Malgun Gothic", "Apple SD Gothic Neo",
    "Noto Sans Thai", "Noto Sans Devanagari", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS",
)  # fmt: skip


def font(size: float, text: str = "") -> Font:
    """A typeface for this text at a size in pixels.

    It is Pillow's built-in one if that has all the letters, so that most pictures look the same on every machine.
    Otherwise it is the one of `FAMILIES` on this machine that has most of them.
    """
    path = _path_for(frozenset(map(ord, composed(text))))
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def drawable(text: str, face: Font) -> str:
    """The text with `?` for letters that the typeface lacks."""
    path = getattr(face, "path", None)
    letters = _letters_in(path) if isinstance(path, str) else _BUILT_IN
    return "".join(letter if letter == "\n" or ord(letter) in letters else "?" for letter in composed(text))


def composed(text: str) -> str:
    """The text with accents joined to their letters: macOS keeps them apart in file names."""
    return unicodedata.normalize("NFC", text)


def families_for(text: str) -> list[str]:
    """The families that draw this text in a matplotlib figure: its usual one, and one for letters that it lacks."""
    path = _path_for(frozenset(map(ord, text)))
    return [FAMILIES[0], *(family for family in FAMILIES[1:] if path and _installed().get(family) == path)]


@cache
def _path_for(letters: frozenset[int]) -> str | None:
    """The file of the typeface with most of these letters; None: Pillow's own has all, or nothing has more."""
    if letters <= _BUILT_IN:
        return None
    best = max(_installed().values(), key=lambda path: len(letters & _letters_in(path)), default=None)
    return best if best and len(letters & _letters_in(best)) > len(letters & _BUILT_IN) else None


@cache
def _installed() -> dict[str, str]:
    """The files of those families that this machine has, regular and upright."""
    from .matplotlib_parts import fontManager  # takes half a second, and few texts need it

    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and Path(entry.fname).is_file()]
    by_weight = sorted(upright, key=lambda entry: -abs(entry.weight - 400 if isinstance(entry.weight, int) else 0))
    regular = {entry.name: entry.fname for entry in by_weight}  # the nearest to regular comes last
    return {family: regular[family] for family in FAMILIES if family in regular}


@cache
def _letters_in(path: str) -> frozenset[int]:
    from .matplotlib_parts import FT2Font

    return frozenset(FT2Font(path).get_charmap())

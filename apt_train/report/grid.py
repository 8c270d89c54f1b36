"""Labelled sheets of equally sized pictures.

In: layout and labels, with Pillow only. Not in: what the pictures show.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

from PIL import Image, ImageDraw

from ..palette import INK, PAPER
from .typeface import Font, drawable, font

_UNSPACED = "\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef"  # Chinese and Japanese, written without blanks
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    gap: int = 4,
    text_size: float = 14,
) -> Image.Image:
    """Pictures of one size in rows and columns (None: an empty place), with labels to the left and above.

    Long column labels are wrapped to the width of a picture. A row's label gets as many lines as fit beside a picture;
    if there are more, the last one is `...`.
    """
    width, height = next(picture.size for row in rows for picture in row if picture is not None)
    face, line = font(text_size, "".join([*row_labels, *column_labels])), round(text_size * 1.25)
    names = [fit_label(label, width, face) for label in column_labels]
    row_labels = [_cut(label, height // line) for label in row_labels]
    top = gap + line * max((name.count("\n") + 1 for name in names), default=0)
    lengths = [face.getlength(part) for label in row_labels for part in label.split("\n")]
    left = 2 * gap + round(max(lengths, default=0))
    sheet = Image.new("RGB", (left + len(names) * (width + gap), top + len(rows) * (height + gap)), PAPER)
    write = partial(ImageDraw.Draw(sheet).multiline_text, fill=INK, font=face, spacing=line - text_size)
    for c, name in enumerate(names):
        write((left + c * (width + gap) + width / 2, top - gap / 2), name, anchor="md", align="center")
    for r, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + r * (height + gap)
        write((left - gap, y + height / 2), label, anchor="rm", align="right")
        for c, picture in enumerate(row):
            if picture is not None:
                sheet.paste(picture, (left + c * (width + gap), y))
    return sheet


def stacked_vertically(
    sheets: Sequence[Image.Image], *, gap: int = 0, above: int = 0, below: int = 0, least_width: int = 0
) -> Image.Image:
    """Pictures of any sizes in one column, aligned left, with a gap between them and room above and below for text."""
    height = above + sum(sheet.height + gap for sheet in sheets) - gap + below
    whole, top = Image.new("RGB", (max(least_width, *(sheet.width for sheet in sheets)), height), PAPER), above
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + gap
    return whole


def fit_label(label: str, width: float, face: Font) -> str:
    """The label wrapped to lines of at most `width` pixels; longer words lose their middle.

    Letters that the typeface lacks become `?`.
    """
    lines: list[str] = []
    for paragraph in drawable(label, face).split("\n"):
        lines.append("")
        for piece in _WORD.findall(paragraph):
            word = piece.strip()
            longer = f"{lines[-1]}{' ' * (word != piece)}{word}".lstrip()
            if face.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines[-1:] = [line for line in (lines[-1], _shorten(word, width, face)) if line]
    return "\n".join(lines)


def _cut(label: str, most: int) -> str:
    """At most this many of the label's lines, but at least the first."""
    lines = label.split("\n")
    return label if len(lines) <= most else "\n".join([*lines[: max(1, most - 1)], "..."])


def _shorten(word: str, width: float, face: Font) -> str:
    if face.getlength(word) <= width:
        return word
    letters = range(2, len(word))
    fitting = bisect_right(letters, width, key=lambda keep: face.getlength(without_middle(word, keep)))
    return without_middle(word, letters[max(0, fitting - 1)]) if letters else word


def without_middle(word: str, keep: int) -> str:
    """The word reduced to this many letters, with `..` in place of its middle; a shorter one as it is."""
    return word if len(word) <= keep else f"{word[: (keep + 1) // 2]}..{word[len(word) - keep // 2 :]}"

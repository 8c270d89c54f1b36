"""Labelled sheets of equally sized pictures.

In: placing and lettering by Pillow alone. Not in: what the pictures are.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .palette import INK, PAPER, Rgb

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(size: float) -> Font:
    """Pillow's own built-in typeface, so that a picture looks alike on every machine."""
    return ImageFont.load_default(size)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    gap: int = 4,
    text_size: float = 14,
    background: Rgb = PAPER,
) -> Image.Image:
    """Pictures of one size in rows and columns (None: an empty place), names to the left and above.

    Long column labels are wrapped onto lines no wider than a picture.
    """
    tile = next(picture.size for row in rows for picture in row if picture is not None)
    face = font(text_size)
    names = [fit_label(label, tile[0], face) for label in column_labels]
    line = round(text_size * 1.25)
    top = gap + line * max((name.count("\n") + 1 for name in names), default=0)
    left = (
        gap + max((round(face.getlength(part)) for label in row_labels for part in label.split("\n")), default=0) + gap
    )
    width = left + len(column_labels) * (tile[0] + gap)
    sheet = Image.new("RGB", (width, top + len(rows) * (tile[1] + gap)), background)
    pen = ImageDraw.Draw(sheet)
    for c, name in enumerate(names):
        centre = left + c * (tile[0] + gap) + tile[0] / 2
        pen.multiline_text(
            (centre, top - gap / 2), name, INK, face, anchor="md", align="center", spacing=line - text_size
        )
    for r, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + r * (tile[1] + gap)
        pen.multiline_text(
            (left - gap, y + tile[1] / 2),
            label,
            INK,
            face,
            anchor="rm",
            align="right",
            spacing=line - text_size,
        )
        for c, picture in enumerate(row):
            if picture is not None:
                sheet.paste(picture, (left + c * (tile[0] + gap), y))
    return sheet


def fit_label(label: str, width: float, face: Font) -> str:
    """The label on as many lines as keep it within `width` pixels; words longer than that lose their middle."""
    lines: list[str] = []
    for paragraph in label.split("\n"):
        begun = len(lines)
        for word in paragraph.split():
            word = _shorten(word, width, face)
            if len(lines) > begun and face.getlength(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return "\n".join(lines)


def _shorten(word: str, width: float, face: Font) -> str:
    keep = len(word)
    short = word
    while face.getlength(short) > width and keep > 2:
        keep -= 1
        short = f"{word[: (keep + 1) // 2]}..{word[len(word) - keep // 2 :]}"
    return short

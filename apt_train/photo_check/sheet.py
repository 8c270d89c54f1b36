"""The contact sheet: every picture with its crop, mask and caption, and the findings in words and colour.

In: drawing, with Pillow only. Not in: the findings (`preflight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps, PngImagePlugin

from ..disk.files import atomic_write
from ..palette import BLUE, FAINT, INK, ORANGE, PAPER, Rgb
from ..report.grid import fit_label, stacked_vertically
from ..report.typeface import Font, drawable, font
from ..wording import counted
from .finding import Finding
from .look import TILE, Look
from .preflight import Preflight

COLUMNS, MOST = 3, 60  # pictures per row; pictures on a sheet
TEXT = 21  # pixels: legible even if the sheet is shown at half its width
RED: Rgb = (200, 30, 45)
GREEN: Rgb = (26, 152, 80)
GREY: Rgb = (105, 112, 122)
_GAP, _MARGIN, _FRAME = 22, 16, 5
WIDTH = COLUMNS * TILE + (COLUMNS - 1) * _GAP + 2 * _MARGIN
_DIMMED = 0.72  # opacity of the paper over what is cropped away
_WASH = 0.45  # opacity of the blue over what the mask excludes
_CAPTION_LINES = 4
MARK = "Software", "apt-train check"  # in the file: only files with this mark are overwritten
LEGEND = "Pale: cut away by the crop. Blue: left out by the mask."


@dataclass(frozen=True)
class _Line:
    """Wrapped text in a colour, optionally with a square of that colour before it."""

    text: str
    colour: Rgb
    marked: bool = False


def contact_sheet(found: Preflight) -> Image.Image:
    """RGB, 3 pictures wide; its height depends on pictures and findings. Words are in English."""
    tiles = [_tile(place, look, found.findings) for place, look in enumerate(found.looks[:MOST])]
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    above = _text([_Line(found.heading, _worst(found.findings), True)])
    below = _text(_lines_below(found))
    return stacked_vertically([above, *(_row(row) for row in rows), below])


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles side by side, with a gap beneath."""
    row = Image.new("RGB", (WIDTH, max(tile.height for tile in tiles) + _GAP), PAPER)
    for column, tile in enumerate(tiles):
        row.paste(tile, (_MARGIN + column * (TILE + _GAP), 0))
    return row


def write_sheet(found: Preflight, path: Path) -> None:
    """Write the contact sheet as a PNG, overwriting any file there. InputError: it cannot be written."""
    sheet, about = contact_sheet(found), PngImagePlugin.PngInfo()
    about.add_text(*MARK)
    atomic_write(path, lambda draft: sheet.save(draft, "PNG", pnginfo=about))


def colour_of(finding: Finding) -> Rgb:
    """Red if the result is spoiled, otherwise orange."""
    return RED if finding.serious else ORANGE


def _worst(findings: Sequence[Finding]) -> Rgb:
    return GREEN if not findings else RED if any(finding.serious for finding in findings) else ORANGE


def _lines_below(found: Preflight) -> list[_Line]:
    more = len(found.looks) - MOST
    return [
        _Line(LEGEND, GREY),
        *([_Line(f"Not shown: {counted(more, 'more picture')}.", GREY)] if more > 0 else []),
        *(
            _Line(f"{i}. {_with_numbers(finding.text, found.looks)}", colour_of(finding), True)
            for i, finding in enumerate(found.findings, 1)
        ),
        *(_Line(sentence, GREY) for sentence in (*found.unchecked, *found.notes)),
    ]


# ---- one picture -------------------------------------------------------------------------------------------------


def _tile(place: int, look: Look, findings: Sequence[Finding]) -> Image.Image:
    """The picture in a frame; beneath it its name, its findings' numbers and kinds, and its caption."""
    own = [(number, finding) for number, finding in enumerate(findings, 1) if place in finding.pictures]
    picture = _framed(look, _worst([finding for _, finding in own]) if own else FAINT)
    lines = [
        (*_fitted(_called(place, look), TILE), INK),
        *((*_fitted(f"{number}. {finding.kind}", TILE), colour_of(finding)) for number, finding in own),
        (*_fitted(_caption(look), TILE, _CAPTION_LINES), GREY),
    ]
    line = round(TEXT * 1.25)
    count = sum(text.count("\n") + 1 for text, _, _ in lines)
    tile = Image.new("RGB", (TILE, picture.height + 8 + count * line), PAPER)
    tile.paste(picture, (0, 0))
    pen, y = ImageDraw.Draw(tile), picture.height + 4
    for text, face, colour in lines:
        pen.multiline_text((0, y), text, colour, face, spacing=line - TEXT)
        y += line * (text.count("\n") + 1)
    _badge(pen, str(place + 1))
    return tile


def _framed(look: Look, colour: Rgb) -> Image.Image:
    """The picture centred in a frame of TILE x TILE pixels."""
    picture = _drawn(look)
    picture.thumbnail((TILE - 2 * _FRAME, TILE - 2 * _FRAME), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (TILE, TILE), PAPER)
    picture = ImageOps.expand(picture, _FRAME, colour)
    framed.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return framed


def _drawn(look: Look) -> Image.Image:
    """The whole picture, small, with the cropped-away part dimmed and the mask's edge drawn."""
    picture = look.small.resize(_fitting(look.small.size), Image.Resampling.LANCZOS)
    if look.small_mask is not None:
        counts = ((look.small_mask >= 0.5) * 255).astype(np.uint8)
        white = Image.fromarray(counts).resize(picture.size, Image.Resampling.NEAREST)
        edge = ImageChops.subtract(white.filter(ImageFilter.MaxFilter(3)), white.filter(ImageFilter.MinFilter(5)))
        picture = Image.composite(picture, Image.blend(picture, Image.new("RGB", picture.size, BLUE), _WASH), white)
        picture.paste(BLUE, (0, 0), edge)
    scale = picture.width / look.size[1], picture.height / look.size[0]
    left, top, right, bottom = (round(side * scale[i % 2]) for i, side in enumerate(look.crop.box))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # the crop of an endless strip is thinner than a pixel
    dimmed = Image.blend(picture, Image.new("RGB", picture.size, PAPER), _DIMMED)
    dimmed.paste(picture.crop((left, top, right, bottom)), (left, top))
    if (right - left, bottom - top) != picture.size:
        ImageDraw.Draw(dimmed).rectangle((left, top, right - 1, bottom - 1), outline=INK, width=2)
    return dimmed


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    """A size with the longer side TILE, so that small pictures appear as large as others."""
    longest = max(size)
    return max(1, round(size[0] * TILE / longest)), max(1, round(size[1] * TILE / longest))


def _badge(pen: ImageDraw.ImageDraw, text: str) -> None:
    """The picture's number, as used in APT Train's sentences."""
    face = font(TEXT)
    width = round(face.getlength(text)) + 14
    pen.rectangle((0, 0, width, TEXT + 8), INK)
    pen.text((width / 2, TEXT / 2 + 4), text, PAPER, face, anchor="mm")


# ---- words -------------------------------------------------------------------------------------------------------


def _text(lines: Sequence[_Line]) -> Image.Image:
    """Paragraphs beneath each other, over the sheet's full width."""
    line, square = round(TEXT * 1.3), TEXT + 9
    room = WIDTH - 2 * _MARGIN
    wrapped = [_fitted(item.text, room - square * item.marked) for item in lines]
    heights = [line * (text.count("\n") + 1) + 8 for text, _ in wrapped]
    drawn = Image.new("RGB", (WIDTH, sum(heights) + 12), PAPER)
    pen, y = ImageDraw.Draw(drawn), 8
    for item, (text, face), height in zip(lines, wrapped, heights, strict=True):
        if item.marked:
            pen.rectangle((_MARGIN, y + 3, _MARGIN + TEXT - 3, y + TEXT), item.colour)
        colour = INK if item.marked else item.colour
        # Raqm would turn a sentence round that begins with a name in Hebrew or Arabic; no other layout takes the word.
        order = "ltr" if getattr(face, "layout_engine", None) == ImageFont.Layout.RAQM else None
        pen.multiline_text(
            (_MARGIN + square * item.marked, y), text, colour, face, spacing=line - TEXT, direction=order
        )
        y += height
    return drawn


def _fitted(text: str, width: int, most: int | None = None) -> tuple[str, Font]:
    """The text wrapped to a width, in at most so many lines, and the typeface that has its letters."""
    face = font(TEXT, text)
    lines = fit_label(text, width, face).split("\n")
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1][:-3]}..."]
    return "\n".join(lines), face


def _called(place: int, look: Look) -> str:
    """A picture's name, or its number if the name cannot be drawn."""
    return look.name if _is_drawn(Path(look.name).stem) else f"picture {place + 1}"


def _with_numbers(text: str, looks: Sequence[Look]) -> str:
    """The text with the numbers of pictures in place of names that cannot be drawn; longer names first."""
    for place, look in sorted(enumerate(looks), key=lambda item: -len(item[1].name)):
        text = text.replace(look.name, _called(place, look))
    return text


def _caption(look: Look) -> str:
    if look.caption is None:
        return "no caption"
    return look.caption if _is_drawn(look.caption) else "a caption in other letters"


def _is_drawn(text: str) -> bool:
    """Whether this machine has a typeface with most of the letters."""
    return 2 * drawable(text, font(TEXT, text)).count("?") < len(text)

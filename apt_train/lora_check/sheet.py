"""The check-up on one page: samples by strength, the gain by noise level, drift, attention, blocks.

In: drawing, with letters that stay legible at 70%. Not in: numbers (`findings`), sentences (`verdict`).
"""

from __future__ import annotations

import textwrap
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..palette import BLUE, FAINT, INK, ORANGE, PALE, SERIES, Rgb, as_hex
from ..report.grid import without_middle
from ..report.heat_map import heat_map
from ..report.matplotlib_parts import Axes, Figure, SubFigure, our_style
from ..report.plots import as_picture, dress, message
from ..wording import bin_names, counted
from .findings import CheckUp
from .verdict import headline, nearest, paragraphs

WIDTH = 1400  # pixels
LETTERS = 12.5
_SIZES = (LETTERS + 0.5, LETTERS, LETTERS - 1)  # font sizes of a chart's title, its axis labels, its ticks
_LEGEND: dict[str, Any] = {"fontsize": LETTERS - 1.5, "frameon": False}
_MARKS: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 2}
_PICKED: dict[str, Any] = {"color": as_hex(INK), "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 0}
_NAME, _WORDS, _SOURCE = 48, 36, 36  # letters of a file name, of a trigger or class word, of a model, that fit
_CROWD = 10  # with more strengths than this, letters are smaller
_Line = tuple[str, list[float], Rgb]  # name, a value per strength, colour


def sheet(found: CheckUp, width: int = WIDTH) -> Image.Image:
    """One picture, `width` pixels across."""
    return as_picture(sheet_figure(found), width)


@our_style()
def sheet_figure(found: CheckUp) -> Figure:
    """The page as a figure 14 inches wide."""
    words = "\n".join(textwrap.wrap(paragraphs(found)[0].removeprefix(headline(found)).strip(), 118))
    heights = [0.9 + 0.24 * (words.count("\n") + 1), 2.9 if found.samples else 0.0, 4.4, 3.9]
    shown = [height for height in heights if height]
    figure = Figure((14, sum(shown)), dpi=100, layout="constrained")
    parts = list(figure.subfigures(len(shown), 1, squeeze=False, height_ratios=shown)[:, 0])
    _head(parts.pop(0), found, words)
    if found.samples:
        _samples(parts.pop(0), found)
    _by_strength(parts.pop(0), found)
    _inside(parts.pop(0), found)
    return figure


def _head(place: SubFigure, found: CheckUp, words: str) -> None:
    colour = "#b3261e" if found.recommendation.overfitted else as_hex(INK)
    title = f"{headline(found)}  {without_middle(found.lora.name, _NAME)}"
    place.text(0.012, 0.97, title, fontsize=19, va="top", weight="bold", color=colour)
    trigger, word = (without_middle(text, _WORDS) for text in (found.subject.trigger, found.subject.class_word))
    on = f'on {without_middle(found.source, _SOURCE)}, "{trigger}" for "{word}"'
    seen = counted(found.pictures, "picture")
    place.text(
        0.012, 0.06, f"{words}\n{on}; {seen}", fontsize=LETTERS, va="bottom", color=as_hex(INK), linespacing=1.35
    )


def _samples(place: SubFigure, found: CheckUp) -> None:
    """The prior's picture and one per strength; the one nearest to the recommendation is framed."""
    few = len(found.points) <= _CROWD
    titles = ["without it" if few else "0", *(f"{point.strength:g}" for point in found.points)]
    axes = place.subplots(1, len(titles), squeeze=False)[0]
    for spot, title, picture in zip(axes, titles, found.samples, strict=False):
        spot.imshow(np.asarray(picture))
        spot.set_title(title, fontsize=LETTERS + (1 if few else -1), color=as_hex(INK))
        spot.set(xticks=[], yticks=[])
        picked = title == f"{nearest(found).strength:g}"
        spot.spines[:].set(color=as_hex(ORANGE if picked else FAINT), linewidth=4 if picked else 1)


def _by_strength(place: SubFigure, found: CheckUp) -> None:
    left, right = place.subplots(1, 2, width_ratios=(1.1, 1))
    if found.pictures:
        _gain_map(left, found)
    else:
        _say(left, "Without the training pictures\nthe gain by noise level is not known.")
    bare: _Line = ("the same, with the bare class word", [point.bare for point in found.points], PALE)
    lines: list[_Line] = [
        ("subject's prompts, with the trigger", [point.subject for point in found.points], BLUE),
        *([bare] if found.subject.trigger != found.subject.class_word else []),  # it would lie on the first
        ("prompts about other things", [point.unrelated for point in found.points], ORANGE),
    ]
    _strengths(right, found, "How far it leaves the model", "squared difference of epsilon", lines)
    right.set_ylim(0, 1.4 * max(1e-9, *(value for _, values, _ in lines for value in values)))  # for the legend


def _gain_map(axes: Axes, found: CheckUp) -> None:
    """Levels x strengths, each cell with its number: red is better than without the LoRA, blue worse."""
    levels = [point.gain.levels for point in found.points if point.gain is not None]
    gains = cast("NDArray[np.float64]", np.array(levels).T)
    most = max(0.01, float(np.abs(gains).max()))
    rows, columns = gains.shape
    few = columns <= _CROWD
    extent = (-0.5, columns - 0.5, -0.5, rows - 0.5)
    axes.imshow(heat_map(gains / most, signed=True), origin="lower", aspect="auto", extent=extent)
    for row in range(rows):
        for column in range(columns):
            share = gains[row, column]
            light = abs(share) > 0.6 * most
            axes.text(
                column, row, f"{share:+.0%}", ha="center", va="center", fontsize=LETTERS - (2.5 if few else 5),
                color="white" if light else as_hex(INK),
            )  # fmt: skip
    axes.set_xticks(range(columns), [f"{at.strength:g}" if few or k % 2 else "" for k, at in enumerate(found.points)])
    axes.set_yticks(range(rows), bin_names(found.bins))
    dress(axes, "Error on the pictures saved by it (red: better than without)", "noise level", _SIZES, grid=False)
    axes.set_xlabel("strength", fontsize=LETTERS, color=as_hex(INK))


def _inside(place: SubFigure, found: CheckUp) -> None:
    left, middle, right = place.subplots(1, 3, width_ratios=(1, 1, 1.15))
    spill = ("other things", [point.spill for point in found.points], ORANGE)
    _strengths(left, found, "Spill: 1 is a prompt left out", "unrelated drift, as a share", [spill])
    left.set_ylim(0, 1.08 * max(1e-9, *spill[1]))
    if all(point.alignment is not None for point in found.points):
        lines: list[_Line] = [
            ("alignment", [point.alignment or 0 for point in found.points], BLUE),
            ("other words", [point.context or 0 for point in found.points], SERIES[2]),
        ]
        _strengths(middle, found, "Attention: 1 is the model's own", "", lines)
    else:
        _say(middle, "This network has no\nattention to read.")
    _block_bars(right, found)


def _block_bars(axes: Axes, found: CheckUp) -> None:
    names = [block.name for block in found.blocks]
    moved = [block.moved for block in found.blocks]
    axes.barh(names, moved, color=as_hex(BLUE))
    for row, block in enumerate(found.blocks):
        used = "" if block.used is None else f"  rank {block.used:.1f} of {block.rank:.0f}"
        axes.text(block.moved, row, f" {block.moved:.1%}{used}", va="center", fontsize=LETTERS - 2, color=as_hex(INK))
    axes.set_xlim(0, 1.75 * max([*moved, 1e-9]))
    axes.invert_yaxis()
    axes.set_xticks([])
    dress(axes, "Blocks moved, of their weights' norm", "", _SIZES, grid=False)


def _strengths(axes: Axes, found: CheckUp, title: str, ylabel: str, lines: list[_Line]) -> None:
    strengths = [point.strength for point in found.points]
    for name, values, colour in lines:
        axes.plot(strengths, values, label=name, color=as_hex(colour), **_MARKS)
    if len(lines) > 1:
        axes.legend(**_LEGEND)
    axes.axvline(found.recommendation.strength, **_PICKED)
    axes.set_xticks(_apart(strengths))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("strength (dashed: the one to use)", fontsize=LETTERS, color=as_hex(INK))
    dress(axes, title, ylabel, _SIZES, grid=True)


def _apart(strengths: list[float]) -> list[float]:
    """The strengths whose labels do not overlap, from the highest on."""
    room, kept = (strengths[-1] - strengths[0]) / 7, strengths[-1:]
    for strength in reversed(strengths):
        if kept[-1] - strength >= room > 0:
            kept.append(strength)
    return kept


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    message(axes, text, LETTERS + 1)

"""Small charts that are fast enough to draw at every step of a run: the indicator as a map, and the loss.

In: Pillow and numpy only, about 10 ms per picture. Not in: the report's figures (`plots`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from ..palette import BLUE, FAINT, INK, PALE, PAPER, Rgb
from ..verdict.run_log import Floats, block_means, moving_average
from ..wording import bin_names
from .grid import font
from .heat_map import heat_map

OVERSAMPLE = 2  # Pillow draws hard edges; drawing at twice the size and shrinking smooths them

_Frame = tuple[int, int, int, int]  # left, top, right, bottom


def heat_image(gamma: ArrayLike, width: int, height: int) -> Image.Image:
    """The overfitting indicator so far, (steps, bins) in [0, 1], as a map: one row per bin, noisiest on top.

    Steps run from left to right over the full width; the colour scale is on the right.
    """
    values = np.asarray(gamma, dtype=np.float64)
    steps, bins = values.shape
    if not values.size:
        return _empty("overfitting indicator: not measured", (width, height))
    marks = [((b + 0.5) / bins, name) for b, name in enumerate(bin_names(bins))]
    face = font(_letters(height))
    room = round(face.getlength("0.5")) + 30  # space for the scale
    image, frame = _chart("overfitting indicator by noise level", marks[::-1], steps, (width, height), room)
    size = _size(frame)
    image.paste(heat_map(np.transpose(block_means(values, size[0]))[::-1], size), frame[:2])
    image.paste(heat_map(np.linspace(1, 0, size[1])[:, None], (10, size[1])), (frame[2] + 10, frame[1]))
    for value, y, anchor in (("1", frame[1], "la"), ("0.5", sum(frame[1::2]) / 2, "lm"), ("0", frame[3], "ls")):
        ImageDraw.Draw(image).text((frame[2] + 25, y), value, INK, face, anchor=anchor)
    return image


def loss_image(losses: Sequence[float] | Floats, width: int, height: int) -> Image.Image:
    """The loss so far: every step faint, its moving average thick. Steps with non-finite loss are skipped."""
    values = np.asarray(losses, dtype=np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        return _empty("loss: none yet", (width, height))
    smooth = block_means(moving_average(values, max(1, len(values) // 25) | 1), 2 * width)
    top = max(float(np.quantile(known, 0.99)), float(np.nanmax(smooth))) or 1.0
    low, high = min(0.0, float(known.min())), top * 1.05 if top > 0 else 1.0
    marks = [(part, _number(low + part * (high - low))) for part in (1, 0.5, 0)]
    image, frame = _chart("loss", marks, len(values), (width, height))
    curves = [(block_means(values, 2 * width), PALE, 1.0), (smooth, BLUE, 2.2)]
    image.paste(_curves(curves, (low, high), _size(frame)), frame[:2])
    return image


def _empty(title: str, size: tuple[int, int]) -> Image.Image:
    image, frame = _chart(title, [(1, "1"), (0.5, "0.5"), (0, "0")], 0, size)
    image.paste(_curves([], (0, 1), _size(frame)), frame[:2])
    return image


def _chart(
    title: str, marks: list[tuple[float, str]], steps: int, size: tuple[int, int], right: int = 8
) -> tuple[Image.Image, _Frame]:
    """Paper with an empty frame: title above, first, middle and last step below, labels on the left.

    `marks`: from the top down, a fraction of the frame's height and its label; as many are drawn as fit.
    """
    image, face = Image.new("RGB", size, PAPER), font(_letters(size[1]))
    pen, line = ImageDraw.Draw(image), round(face.getbbox("Ag")[3]) + 3
    left = 10 + round(max((face.getlength(name) for _, name in marks), default=0))
    frame = (left, line + 6, size[0] - right, size[1] - line - 6)
    width, height = _size(frame)
    pen.text((left, 3), title, INK, face)
    every = -(-line // max(1, height // max(1, len(marks))))
    for part, name in marks[::every]:
        pen.text((left - 5, frame[3] - part * height), name, INK, face, anchor="rm")
    for part, anchor in ((0, "la"), (0.5, "ma"), (1, "ra")):
        if steps > 2 or (steps and part == 1):
            step = 1 + round(part * (steps - 1))
            pen.text((left + part * width, frame[3] + 3), str(step), INK, face, anchor=anchor)
    return image, frame


def _curves(
    curves: Sequence[tuple[Floats, Rgb, float]], span: tuple[float, float], size: tuple[int, int]
) -> Image.Image:
    """Curves (values, colour, width) within `span`, over three grid lines; a single value is a dot."""
    width, height = (OVERSAMPLE * side for side in size)
    large = Image.new("RGB", (width, height), PAPER)
    pen, radius = ImageDraw.Draw(large), 3 * OVERSAMPLE
    for y in np.linspace(0, height - OVERSAMPLE, 3).tolist():
        pen.line([(0, y), (width, y)], FAINT, OVERSAMPLE)
    for values, colour, thickness in curves:
        xs = np.linspace(0, width - 1 - radius, max(2, len(values)))[-len(values) :]
        points = np.stack([xs, np.interp(values, span, (height - 1, 0))], axis=1)[np.isfinite(values)]
        if len(points) > 1:
            pen.line([(x, y) for x, y in points.tolist()], colour, round(thickness * OVERSAMPLE), joint="curve")
        for x, y in points.tolist() if len(points) == 1 else ():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return large.resize(size, Image.Resampling.BOX)


def _size(frame: _Frame) -> tuple[int, int]:
    return max(1, frame[2] - frame[0]), max(1, frame[3] - frame[1])


def _letters(height: int) -> float:
    return max(9.0, min(15.0, height / 20))


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"

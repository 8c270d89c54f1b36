"""Small charts drawn fast enough for every step of a run: the indicator's bins, as curves or as a map, and the loss.

In: Pillow and numpy alone, some 10 ms a picture. Not in: the report's figures (`plots`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from .grid import Font, font
from .palette import BLUE, FAINT, INK, PAPER, Rgb, bin_colours, heat
from .run_log import Floats, block_means, moving_average
from .run_summary import bin_edges

OVERSAMPLE = 2  # Pillow draws hard edges; drawn twice as large and shrunk they are smooth


@dataclass(frozen=True)
class _Curve:
    values: Floats
    colour: Rgb
    width: float
    label: str = ""


def indicator_image(gamma: ArrayLike, width: int = 640, height: int = 320, *, num_timesteps: int = 1000) -> Image.Image:
    """The overfitting indicator so far, (steps, bins) in [0, 1]: a curve per bin, timesteps at the right."""
    values = np.asarray(gamma, dtype=np.float64)
    steps, bins = values.shape
    if steps == 0 or bins == 0:
        return _chart([], 0, (0.0, 1.0), "overfitting indicator: not measured", width, height)
    shown = block_means(values, 2 * width)
    edges = bin_edges(bins, num_timesteps)
    curves = [
        _Curve(shown[:, b], colour, 1.6, f"{edges[b][0]}-{edges[b][1]}") for b, colour in enumerate(bin_colours(bins))
    ]
    return _chart(curves, steps, (0.0, 1.0), "overfitting indicator by timestep", width, height)


def heat_image(gamma: ArrayLike, width: int = 512, height: int = 256, *, num_timesteps: int = 1000) -> Image.Image:
    """The overfitting indicator so far, (steps, bins) in [0, 1], as a map: a row per bin, noisiest on top.

    Steps run from left to right over the whole width; the colour scale stands at the right.
    """
    values = np.asarray(gamma, dtype=np.float64)
    steps, bins = values.shape
    if steps == 0 or bins == 0:
        return _chart([], 0, (0.0, 1.0), "overfitting indicator: not measured", width, height)
    face = _face(height)
    line = _line(face)
    names = [f"{low}-{high}" for low, high in reversed(bin_edges(bins, num_timesteps))]
    left = round(max(face.getlength(name) for name in names)) + 10
    frame = (left, line + 6, round(width - face.getlength("0.5") - 30), height - line - 6)
    image = Image.new("RGB", (width, height), PAPER)
    _paste(image, heat(block_means(values, frame[2] - left).T[::-1]), frame)
    pen = ImageDraw.Draw(image)
    pen.text((left, 3), "overfitting indicator by timestep", INK, face)
    rows = [(frame[1] + (place + 0.5) * (frame[3] - frame[1]) / bins, name) for place, name in enumerate(names)]
    for y, name in rows[:: _every(bins, frame, line)]:
        pen.text((left - 5, y), name, INK, face, anchor="rm")
    _step_ticks(pen, steps, frame, face)
    _colour_scale(image, pen, frame, face)
    return image


def loss_image(losses: Sequence[float] | Floats, width: int = 640, height: int = 320) -> Image.Image:
    """The loss so far: every step faint, its moving average thick. Steps that are no number are left out."""
    values = np.asarray(losses, dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return _chart([], 0, (0.0, 1.0), "loss: none yet", width, height)
    smooth = block_means(moving_average(values, max(1, len(values) // 25) | 1), 2 * width)
    colour = BLUE
    pale: Rgb = (168, 197, 230)
    curves = [_Curve(block_means(values, 2 * width), pale, 1.0), _Curve(smooth, colour, 2.2)]
    top = max(float(np.quantile(known, 0.99)), float(np.nanmax(smooth))) or 1.0
    bottom = min(0.0, float(known.min()))
    return _chart(curves, len(values), (bottom, top * 1.05 if top > 0 else 1.0), "loss", width, height)


def _chart(
    curves: list[_Curve], steps: int, span: tuple[float, float], title: str, width: int, height: int
) -> Image.Image:
    """Curves over 1..steps inside a frame with a title, three ticks a side and the curves' labels."""
    face = _face(height)
    line = _line(face)
    names = [curve.label for curve in curves if curve.label]
    right = width - (max(face.getlength(name) for name in names) + 16 if names else 8)
    ticks = [span[0] + part * (span[1] - span[0]) for part in (0, 0.5, 1)]
    left = 8 + max(face.getlength(_number(tick)) for tick in ticks)
    frame = (left, 2 * line * 0.8, right, height - line - 6)
    image = _curves(curves, span, frame, ticks, width, height)
    pen = ImageDraw.Draw(image)
    pen.text((left, 3), title, INK, face)
    for tick in ticks:
        pen.text((left - 4, _y(tick, span, frame)), _number(tick), INK, face, anchor="rm")
    _step_ticks(pen, steps, frame, face)
    _labels(pen, [curve for curve in curves if curve.label], right + 8, frame, face)
    return image


def _curves(
    curves: list[_Curve],
    span: tuple[float, float],
    frame: tuple[float, ...],
    ticks: list[float],
    width: int,
    height: int,
) -> Image.Image:
    scale = OVERSAMPLE
    large = Image.new("RGB", (width * scale, height * scale), PAPER)
    pen = ImageDraw.Draw(large)
    for tick in ticks:
        y = _y(tick, span, frame) * scale
        pen.line([(frame[0] * scale, y), (frame[2] * scale, y)], FAINT, scale)
    for curve in curves:
        xs = np.linspace(frame[0], frame[2], max(2, len(curve.values)))[-len(curve.values) :]
        points = [
            (x * scale, _y(v, span, frame) * scale) for x, v in zip(xs, curve.values, strict=True) if np.isfinite(v)
        ]
        if len(points) > 1:
            pen.line(points, curve.colour, round(curve.width * scale), joint="curve")
        elif points:
            (x, y), r = points[0], 3 * scale
            pen.ellipse((x - r, y - r, x + r, y + r), curve.colour)
    return large.resize((width, height), Image.Resampling.BOX)


def _labels(pen: ImageDraw.ImageDraw, curves: list[_Curve], x: float, frame: tuple[float, ...], face: Font) -> None:
    """Names in the curves' colours down the right side, noisiest on top; every second one where it gets too tight."""
    if not curves:
        return
    room = (frame[3] - frame[1]) / len(curves)
    every = _every(len(curves), frame, 11)
    for place, curve in enumerate(reversed(curves)):
        if place % every == 0:
            pen.text((x, frame[1] + (place + 0.5) * room), curve.label, curve.colour, face, anchor="lm")


def _step_ticks(pen: ImageDraw.ImageDraw, steps: int, frame: tuple[float, ...], face: Font) -> None:
    """First, middle and last of 1..steps beneath the frame."""
    for part in (0.0, 0.5, 1.0) if steps > 2 else (1.0,) if steps else ():
        x = frame[0] + part * (frame[2] - frame[0])
        place = "la" if part == 0 else "ma" if part < 1 else "ra"
        pen.text((x, frame[3] + 3), str(1 + round(part * (steps - 1))), INK, face, anchor=place)


def _colour_scale(image: Image.Image, pen: ImageDraw.ImageDraw, frame: tuple[int, int, int, int], face: Font) -> None:
    """What the colours mean, from 0 at the bottom to 1 at the top, right of the frame."""
    left, right = frame[2] + 10, frame[2] + 20
    _paste(image, heat(np.linspace(1, 0, frame[3] - frame[1])[:, None]), (left, frame[1], right, frame[3]))
    for value, place in ((1.0, "la"), (0.5, "lm"), (0.0, "ls")):
        pen.text((right + 5, _y(value, (0.0, 1.0), frame)), f"{value:g}", INK, face, anchor=place)


def _paste(image: Image.Image, colours: NDArray[np.uint8], frame: tuple[int, int, int, int]) -> None:
    """Colours (rows, columns, 3) as hard-edged fields that fill the frame."""
    size = (max(1, frame[2] - frame[0]), max(1, frame[3] - frame[1]))
    image.paste(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST), frame[:2])


def _every(count: int, frame: tuple[float, ...], line: int) -> int:
    """Of `count` names down the frame's side each how manieth fits, `line` pixels high."""
    return max(1, -(-line // max(1, int((frame[3] - frame[1]) / count))))


def _face(height: int) -> Font:
    return font(max(9.0, min(15.0, height / 20)))


def _line(face: Font) -> int:
    return round(face.getbbox("Ag")[3]) + 3


def _y(value: float, span: tuple[float, float], frame: tuple[float, ...]) -> float:
    part = (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])
    return frame[3] - part * (frame[3] - frame[1])


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"

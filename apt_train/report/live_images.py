"""Small charts drawn fast enough for every step of a run: the indicator's bins and the loss.

In: Pillow and numpy alone, some 10 ms a picture. Not in: the report's figures (`plots`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from .grid import font
from .palette import FAINT, INK, PAPER, TERM_COLOURS, Rgb, bin_colours
from .run_log import Floats, block_means, moving_average
from .run_summary import bin_edges

OVERSAMPLE = 2  # Pillow draws hard edges; drawn twice as large and shrunk they are smooth


@dataclass(frozen=True)
class _Curve:
    values: Floats
    colour: Rgb
    width: float
    label: str = ""


def indicator_image(
    gamma: ArrayLike, width: int = 640, height: int = 320, *, num_timesteps: int = 1000
) -> Image.Image:
    """The overfitting indicator so far, (steps, bins) in [0, 1]: a curve per bin, timesteps at the right."""
    values = np.asarray(gamma, dtype=np.float64)
    steps, bins = values.shape
    if steps == 0 or bins == 0:
        return _chart([], 0, (0.0, 1.0), "overfitting indicator: not measured", width, height)
    shown = block_means(values, 2 * width)
    edges = bin_edges(bins, num_timesteps)
    curves = [
        _Curve(shown[:, b], colour, 1.6, f"{edges[b][0]}-{edges[b][1]}")
        for b, colour in enumerate(bin_colours(bins))
    ]
    return _chart(curves, steps, (0.0, 1.0), "overfitting indicator by timestep", width, height)


def loss_image(losses: Sequence[float] | Floats, width: int = 640, height: int = 320) -> Image.Image:
    """The loss so far: every step faint, its moving average thick. Steps that are no number are left out."""
    values = np.asarray(losses, dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return _chart([], 0, (0.0, 1.0), "loss: none yet", width, height)
    smooth = block_means(moving_average(values, max(1, len(values) // 25) | 1), 2 * width)
    colour = TERM_COLOURS["denoising"]
    pale: Rgb = (168, 197, 230)
    curves = [_Curve(block_means(values, 2 * width), pale, 1.0), _Curve(smooth, colour, 2.2)]
    top = max(float(np.quantile(known, 0.99)), float(np.nanmax(smooth))) or 1.0
    bottom = min(0.0, float(known.min()))
    return _chart(curves, len(values), (bottom, top * 1.05 if top > 0 else 1.0), "loss", width, height)


def _chart(
    curves: list[_Curve], steps: int, span: tuple[float, float], title: str, width: int, height: int
) -> Image.Image:
    """Curves over 1..steps inside a frame with a title, three ticks a side and the curves' labels."""
    face = font(max(9.0, min(15.0, height / 20)))
    line = face.getbbox("Ag")[3] + 3
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
    for part in (0.0, 0.5, 1.0) if steps > 2 else (1.0,) if steps else ():
        x = frame[0] + part * (frame[2] - frame[0])
        place = "la" if part == 0 else "ma" if part < 1 else "ra"
        pen.text((x, frame[3] + 3), str(1 + round(part * (steps - 1))), INK, face, anchor=place)
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
            (x * scale, _y(v, span, frame) * scale)
            for x, v in zip(xs, curve.values, strict=True)
            if np.isfinite(v)
        ]
        if len(points) > 1:
            pen.line(points, curve.colour, round(curve.width * scale), joint="curve")
        elif points:
            (x, y), r = points[0], 3 * scale
            pen.ellipse((x - r, y - r, x + r, y + r), curve.colour)
    return large.resize((width, height), Image.Resampling.BOX)


def _labels(
    pen: ImageDraw.ImageDraw, curves: list[_Curve], x: float, frame: tuple[float, ...], face: object
) -> None:
    """Names in the curves' colours down the right side, noisiest on top; every second one where it gets too tight."""
    if not curves:
        return
    room = (frame[3] - frame[1]) / len(curves)
    every = max(1, -(-11 // max(1, int(room))))
    for place, curve in enumerate(reversed(curves)):
        if place % every == 0:
            pen.text((x, frame[1] + (place + 0.5) * room), curve.label, curve.colour, face, anchor="lm")  # type: ignore[arg-type]


def _y(value: float, span: tuple[float, float], frame: tuple[float, ...]) -> float:
    part = (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])
    return frame[3] - part * (frame[3] - frame[1])


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"

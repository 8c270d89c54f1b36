"""The colours of every figure, so that a bin or a term looks the same in all of them. Drawing happens elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

INK: Rgb = (38, 43, 51)
FAINT: Rgb = (214, 219, 226)
PAPER: Rgb = (255, 255, 255)

BLUE: Rgb = (42, 111, 187)
PALE: Rgb = (168, 197, 230)
ORANGE: Rgb = (224, 123, 0)
# For terms of runs that recorded no colours, in the order of the log.
SERIES: tuple[Rgb, ...] = (BLUE, ORANGE, (26, 152, 80), (140, 86, 168), (120, 120, 120))


@dataclass(frozen=True)
class Legend:
    """How a term of the loss is shown."""

    title: str
    colour: str  # #rrggbb


TOTAL = Legend("Total (weighted)", "#333333")


def legends_of(names: Sequence[str], said: Mapping[str, Legend]) -> dict[str, Legend]:
    """The legend of every term by name: as recorded in `said`, otherwise its name and a colour by position."""
    plain = {
        name: Legend(name.replace("_", " ").capitalize(), as_hex(SERIES[min(place, len(SERIES) - 1)]))
        for place, name in enumerate(names)
    }
    return {"loss": TOTAL, **plain, **{name: legend for name, legend in said.items() if name in plain}}


def as_hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


# From clean (low timesteps) to pure noise; no yellow, which vanishes on white.
_BINS: list[Rgb] = [(59, 28, 140), (42, 111, 187), (26, 168, 143), (124, 181, 24), (240, 162, 2), (215, 38, 61)]
_HEAT: list[Rgb] = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]
_DIVERGING: list[Rgb] = [(18, 72, 140), (67, 147, 195), (247, 247, 247), (214, 96, 77), (150, 10, 38)]


def bin_colours(count: int) -> list[Rgb]:
    """One colour per timestep bin, blue for clean pictures to red for noise."""
    places = np.linspace(0, 1, count) if count > 1 else np.zeros(count)
    return [(int(r), int(g), int(b)) for r, g, b in _ramp(_BINS, places)]


def heat(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1], any shape -> RGB (..., 3): black at 0, pale yellow at 1."""
    return _ramp(_HEAT, values)


def diverging(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [-1, 1], any shape -> RGB (..., 3): blue below 0, white at 0, red above."""
    return _ramp(_DIVERGING, (np.asarray(values) + 1) / 2)


def _ramp(anchors: list[Rgb], places: NDArray[np.floating]) -> NDArray[np.uint8]:
    places = np.nan_to_num(np.clip(places, 0, 1))
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(places, at, [anchor[c] for anchor in anchors]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)

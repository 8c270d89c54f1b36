"""Colours of every picture this project draws, so that a bin or a term looks the same in all of them.

In: colour ramps as plain numpy. Not in: drawing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

INK: Rgb = (38, 43, 51)
FAINT: Rgb = (214, 219, 226)
PAPER: Rgb = (255, 255, 255)

TERM_COLOURS: dict[str, Rgb] = {
    "loss": (51, 51, 51),
    "denoising": (42, 111, 187),
    "stabilization": (224, 123, 0),
    "alignment": (26, 152, 80),
    "prior_preservation": (140, 86, 168),
}
OTHER_TERM: Rgb = (120, 120, 120)

# From clean (low timesteps) to pure noise; no yellow, which vanishes on white.
_BINS: list[Rgb] = [
    (59, 28, 140),
    (42, 111, 187),
    (26, 168, 143),
    (124, 181, 24),
    (240, 162, 2),
    (215, 38, 61),
]
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
    return np.stack(channels, axis=-1).round().astype(np.uint8)

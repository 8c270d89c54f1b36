"""The one heat map that all pictures use: numbers as coloured cells.

In: numbers -> picture. Not in: axes, labels and scales around it; the colours themselves (`palette`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..palette import diverging, heat


def heat_map(
    values: NDArray[np.floating], size: tuple[int, int] | None = None, *, signed: bool = False, smooth: bool = False
) -> Image.Image:
    """Values (rows, columns) in [0, 1], `signed` in [-1, 1], first row on top -> picture of `size` (width, height).

    Without a size there is one pixel per value. Cells have hard edges unless `smooth`.
    """
    picture = Image.fromarray(diverging(values) if signed else heat(values))
    return picture.resize(size or picture.size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)

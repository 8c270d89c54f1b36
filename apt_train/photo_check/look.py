"""One picture as the trainer will see it, reduced to the few numbers that the findings use.

In: measurements of the crop at training size, and of its mask. Not in: what the numbers mean (`pictures`, `masks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.buckets import Crop, crop_of, picture_at
from ..data.dataset import TrainImage
from ..data.pictures import resize_mask, to_image

Floats = NDArray[np.float64]

TILE = 240  # pixels: the size of a picture on the sheet
THUMB = 16  # cells per side: enough to recognise a picture
_WINDOWS = (1, 0.96, 0.92, 0.88, 0.84, 0.8)  # sides, as shares; steps that leave two crops at most 2% apart
_FINE = 128  # pixels per side of the picture that the windows are cut from
GRID = 64  # pixels per side of the picture whose surroundings are measured
_RING = 0.18  # share of a side that counts as surroundings without a mask
_LEAST_SURROUNDINGS = 0.1  # if less than this share is outside the mask, the ring is used
_COLOURS = (6, 12, 12)  # steps of brightness, red against green, yellow against blue
_LEAST_TINTS = 0.03  # standard deviation of a colour axis, in [0, 1]; black-and-white 0, sepia about 0.03
_COARSE = 4  # reduction at which a blurred picture becomes sharp
_TILES = 4  # per side; only the sharpest counts, because a background may well be out of focus
_LEAST_SIDE = _TILES * _COARSE * 3  # pixels, so that each tile of the reduced picture has some
_ROUNDING = 20 / 12  # what rounding adds to the Laplacian's variance: 4^2 + 4 * 1^2, each times 1/12
_LEAST_DETAIL = 20.0  # a tile is flat if its coarse Laplacian has less variance


@dataclass(frozen=True)
class Look:
    """A picture's crop at training size. Shares are between 0 and 1."""

    name: str
    caption: str | None
    size: tuple[int, int]  # (height, width) of the file
    crop: Crop
    views: Floats  # (windows, THUMB, THUMB, 3), each of mean 0 and length 1; all 0 for a single colour
    surroundings: Floats  # (colours,), square roots of shares; the dot product of two is their similarity
    one_tint: bool  # black-and-white, or toned: its surroundings say little
    sharpness: float | None  # None: too flat to say
    mask: MaskLook | None
    small: Image.Image  # the whole picture, at most TILE pixels on its longer side
    small_mask: Floats | None  # in [0, 1], the size of `small`


@dataclass(frozen=True)
class MaskLook:
    """A mask in numbers. White means at least half the mask's maximum. Shares are between 0 and 1."""

    area: float  # share of the crop that is white
    cut: float  # share of the white area that the crop removes
    edges: tuple[float, ...]  # share of each edge of the whole picture that is white
    middle: float  # share of the middle third of the whole picture that is white
    kept: Floats  # (GRID, GRID) in [0, 1]: the mask of the crop


def look_at(image: TrainImage, sizes: list[tuple[int, int]]) -> Look:
    """A picture at the nearest of these bucket sizes. InputError: its file has changed."""
    pixels, mask = image.read()
    mask = None if mask is None else mask / mask.max()  # a soft mask may have no white
    crop = crop_of(image.size, sizes)
    picture = picture_at(pixels, crop)
    masked = None if mask is None else _mask_look(mask, crop)
    small = to_image(pixels)
    small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return Look(
        name=image.name,
        caption=image.caption,
        size=image.size,
        crop=crop,
        views=views_of(picture),
        surroundings=surroundings_of(picture, None if masked is None else masked.kept),
        one_tint=has_one_tint(picture),
        sharpness=sharpness_of(_at_own_size(pixels, crop) if crop.scale > 1 else picture),
        mask=masked,
        small=small,
        small_mask=None if mask is None else resize_mask(mask, (small.height, small.width))[0].double().numpy(),
    )


def views_of(picture: Image.Image) -> Floats:
    """The picture and windows of it in a few cells each, normalised for brightness and contrast; first the whole."""
    fine = picture.resize((_FINE, _FINE), Image.Resampling.BOX)
    boxes = [
        np.array((x, y, x + side, y + side)) * _FINE
        for count, side in enumerate(_WINDOWS)
        for x, y in product(np.linspace(0, 1 - side, count + 1), repeat=2)
    ]
    small = [fine.resize((THUMB, THUMB), Image.Resampling.BOX, box=tuple(box)) for box in boxes]
    cells = np.stack([np.asarray(each, dtype=np.float64) for each in small])
    cells -= cells.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(cells.reshape(len(cells), -1), axis=1)[:, None, None, None]
    return np.where(length > 1e-6, cells / np.maximum(length, 1e-6), 0)


def surroundings_of(picture: Image.Image, mask: Floats | None) -> Floats:
    """How often each colour occurs outside the mask, or without a mask near the edges; square roots of shares.

    A pixel is shared between neighbouring colours, so that slightly different light still gives a similar result.
    """
    brightness, *opponents = _axes(picture, _outside(mask))
    steps = np.array(_COLOURS) - 1
    # Stretch the middle of both colour axes, where nearly all photographs lie.
    stretched = [0.5 + (axis - 0.5) / 0.6 for axis in opponents]
    places: Floats = np.clip(np.stack([brightness, *stretched], axis=1), 0, 1) * steps
    low = np.minimum(np.floor(places).astype(int), steps - 1)
    counts, part = np.zeros(_COLOURS), places - low
    for corner in cast("Iterator[tuple[int, ...]]", np.ndindex(2, 2, 2)):
        weight = np.where(corner, part, 1 - part).prod(axis=1)
        np.add.at(counts, tuple(cast("Sequence[NDArray[np.int_]]", (low + corner).T)), weight)
    return np.sqrt(counts / counts.sum()).ravel()


def has_one_tint(picture: Image.Image) -> bool:
    """Whether its colours differ in brightness alone."""
    _, *opponents = _axes(picture, np.ones((GRID, GRID), dtype=bool))
    return max(float(axis.std()) for axis in opponents) < _LEAST_TINTS


def _axes(picture: Image.Image, where: NDArray[np.bool_]) -> list[Floats]:
    """Brightness, red against green and yellow against blue, each in [0, 1], of the picture's cells."""
    cells = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float64) / 255
    red, green, blue = cast("Sequence[Floats]", cells[where].T)
    return [(red + green + blue) / 3, (red - green + 1) / 2, ((red + green) / 2 - blue + 1) / 2]


def sharpness_of(picture: Image.Image) -> float | None:
    """Variance of the Laplacian over that of the picture at a quarter of its size, in the sharpest tile.

    About 0.2 to 2 for photographs, whatever their contrast, because they hold about as much detail at every scale;
    below 0.06 if blur has removed the finest. The plain variance (Pech-Pacheco et al. 2000) depends on contrast too.
    None: every tile is flat, or the picture is too small to tell.
    """
    grey = picture.convert("L")
    if min(grey.size) < _LEAST_SIDE:
        return None
    small = grey.resize([side // _COARSE for side in grey.size], Image.Resampling.BOX)
    fine, coarse = _tile_variances(grey), _tile_variances(small)
    told = coarse > _LEAST_DETAIL
    return float((np.maximum(fine - _ROUNDING, 0)[told] / coarse[told]).max()) if told.any() else None


def _tile_variances(grey: Image.Image) -> Floats:
    """Variance of the Laplacian per tile."""
    values = np.asarray(grey, dtype=np.float64)
    across = values[1:-1, :-2] + values[1:-1, 2:] + values[:-2, 1:-1] + values[2:, 1:-1]
    edges = 4 * values[1:-1, 1:-1] - across
    rows = [tile for band in np.array_split(edges, _TILES, axis=0) for tile in np.array_split(band, _TILES, axis=1)]
    return np.array([tile.var() for tile in rows])


def _at_own_size(pixels: Tensor, crop: Crop) -> Image.Image:
    """The crop without enlargement, which is a separate finding and not the photographer's fault."""
    return to_image(pixels).crop([round(side) for side in crop.box])  # pyright: ignore[reportArgumentType]


def _mask_look(mask: Tensor, crop: Crop) -> MaskLook:
    white, (edges, middle) = (mask[0] >= 0.5).numpy(), edges_and_middle(mask)
    left, top, right, bottom = (round(side) for side in crop.box)
    return MaskLook(
        area=float((resize_mask(mask, crop.bucket, crop.box) >= 0.5).double().mean()),
        cut=float(1 - white[top:bottom, left:right].sum() / max(1, white.sum())),
        edges=edges,
        middle=middle,
        kept=resize_mask(mask, (GRID, GRID), crop.box)[0].double().numpy(),
    )


def edges_and_middle(mask: Tensor) -> tuple[tuple[float, ...], float]:
    """Of a mask (1, H, W) with a maximum of 1: the white share of each edge, and of the middle third."""
    white, (height, width) = (mask[0] >= 0.5).numpy(), mask.shape[-2:]
    thirds = slice(height // 3, -(-2 * height // 3)), slice(width // 3, -(-2 * width // 3))
    edges = tuple(float(edge.mean()) for edge in (white[0], white[-1], white[:, 0], white[:, -1]))
    return edges, float(white[thirds].mean())


def _outside(mask: Floats | None) -> NDArray[np.bool_]:
    ring = np.ones((GRID, GRID), dtype=bool)
    width = round(GRID * _RING)
    ring[width:-width, width:-width] = False
    if mask is None:
        return ring
    outside = mask < 0.1
    return outside if outside.mean() >= _LEAST_SURROUNDINGS else ring

"""The adaptive augmentation: an affine map of the picture before the VAE, and two further kinds.

In: the affine map itself and the drawing of one variant of a picture (and of its loss mask). Not in: when a
picture is augmented (the indicator's business), how many variants there are and their latents
(`latent_bank`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

COLOR_RANGE = 0.2  # ours: brightness, contrast and saturation change by at most this share
PUBLISHED_ZOOM, PUBLISHED_SIDE = 3.0, 128  # reported of SDXL, whose 1024 pixels are 128 latents
Fill = Literal["black", "reflect"]
_Outside = Literal["zeros", "border", "reflection"]
_OUTSIDE: dict[str, _Outside] = {"black": "zeros", "reflect": "reflection"}  # as `grid_sample` calls them
LUMA = (0.299, 0.587, 0.114)  # Rec. 601: how bright red, green and blue look


@dataclass(frozen=True)
class Augmentation:
    """What a variant may differ in: `kinds` of "affine", "flip" and "color"; zoom, angle and fill are the affine map's.

    `max_zoom`: at least 1. `max_degrees`: to either side.
    """

    kinds: tuple[str, ...] = ()
    max_zoom: float = 1.0
    max_degrees: float = 0.0
    fill: Fill = "black"


def zoom_limit(max_zoom: float | Literal["auto"], side: int) -> float:
    """How far pictures are zoomed out at most, at least 1; `side`: latents per side of a square one.

    `auto` (ours): so far that what is left of the picture has as many latents as the published range leaves on
    SDXL, 43 a side. That is 3 for 128 latents, 1.5 for 64, and 1 (turned only) for 43 and fewer. Never above 3.
    """
    if max_zoom != "auto":
        return max_zoom
    return min(PUBLISHED_ZOOM, max(1.0, PUBLISHED_ZOOM * side / PUBLISHED_SIDE))


def affine(
    image: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float, fill: Fill = "black"
) -> tuple[Tensor, Tensor]:
    """Shrink, turn and move a picture on a canvas of its own size.

    That it is an affine map before the VAE, and the ranges, are reported; the black fill is the paper's
    (figure); the antialiasing, and `reflect`, are ours.

    Args:
        image: float (C, H, W) in [-1, 1].
        zoom: above 0; the content's sides become 1/zoom of the canvas.
        degrees: counter-clockwise as seen, about the content's centre; without shear on any aspect.
        shift_x: where the content's centre goes, as a fraction of the canvas; right is positive.
        shift_y: likewise, down is positive.
        fill: outside the content: black (-1), or the picture mirrored at its edges.

    Returns:
        The moved picture, like `image`; and bool (1, H, W), True where a pixel's centre lies in the content.
    """
    assert image.dim() == 3 and image.is_floating_point(), "image must be float (C, H, W)"
    grid = _source_grid(image, zoom, degrees, shift_x, shift_y)
    # Sampled as height above black, so that the zeros beyond the content, and its soft edge, are black.
    above_black = _sample(image + 1, grid, zoom, outside=_OUTSIDE[fill])
    inside = (grid.abs() <= 1 + 1e-9).all(dim=-1)  # the margin: rounding of centres that lie on the very edge
    return (above_black - 1).clamp(-1, 1).to(image.dtype), inside


def affine_mask(
    mask: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float, fill: Fill = "black"
) -> Tensor:
    """The loss mask that goes with `affine`: float (1, H, W) in [0, 1], both ways (ours).

    A black fill continues the mask's own edge: it is more of the background, so a mask that leaves the background
    out leaves the fill out, and one that keeps it trains the fill as the paper does. A mirrored picture has its
    mask mirrored.
    """
    grid = _source_grid(mask, zoom, degrees, shift_x, shift_y)
    outside = "border" if fill == "black" else _OUTSIDE[fill]
    return _sample(mask, grid, zoom, outside=outside).clamp(0, 1).to(mask.dtype)


def draw_variant(
    image: Tensor, mask: Tensor | None, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One random variant of a picture, of its loss mask, and where the picture lies in it.

    `affine` (reported; uniform draws are ours): zoom in [1, max_zoom], angle within +-max_degrees, the place
    uniform among those where the upright content lies inside the canvas. `flip` (ours): mirrored in half of
    the variants. `color` (ours): brightness, contrast and saturation by up to 20% each, on the picture only,
    so a black fill stays black. The same numbers are drawn whatever `kinds` names: adding a kind leaves the
    others' variants as they were.

    Args:
        image: float (3, H, W) in [-1, 1].
        mask: float (1, H, W) in [0, 1], or None.
        augmentation: its fill as in `affine`.
        generator: a CPU generator; exactly eight numbers are taken.

    Returns:
        The picture; its mask (None if there was none); bool (1, H, W), False on the fill.
    """
    kinds, fill = augmentation.kinds, augmentation.fill
    draws = torch.rand(8, generator=generator, dtype=torch.float64)
    zoom, turn, x, y, mirror, *colors = map(float, draws)
    if "color" in kinds:
        image = _jitter_color(image, *(1 + COLOR_RANGE * (2 * value - 1) for value in colors))
    if "flip" in kinds and mirror < 0.5:
        image, mask = image.flip(-1), None if mask is None else mask.flip(-1)
    if "affine" not in kinds:
        return image, mask, torch.ones(1, *image.shape[-2:], dtype=torch.bool)
    zoom = 1 + (augmentation.max_zoom - 1) * zoom
    room = 1 - 1 / zoom  # of the canvas, beside the content
    placement = (zoom, augmentation.max_degrees * (2 * turn - 1), room * (x - 0.5), room * (y - 0.5))
    image, inside = affine(image, *placement, fill)
    return image, None if mask is None else affine_mask(mask, *placement, fill), inside


def _source_grid(image: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float) -> Tensor:
    """For every canvas pixel the place in the source it shows: float64 (1, H, W, 2), from -1 to 1.

    Turned in pixels, not in units of the sides: those would shear a picture that is not square. In float64,
    as float32 would misplace the samples of a 1024 pixel side by up to 1e-4 pixels.
    """
    assert zoom > 0, "zoom must be above 0"
    height, width = image.shape[-2:]
    down = torch.arange(height, dtype=torch.float64) + 0.5 - height * (0.5 + shift_y)
    right = torch.arange(width, dtype=torch.float64) + 0.5 - width * (0.5 + shift_x)
    down, right = torch.meshgrid(down, right, indexing="ij")
    # The way back from the canvas: turned clockwise. Rows run downwards, hence the signs.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    source_x = zoom * (cos * right - sin * down)
    source_y = zoom * (sin * right + cos * down)
    return torch.stack([source_x * (2 / width), source_y * (2 / height)], dim=-1)[None].to(image.device)


def _sample(image: Tensor, grid: Tensor, zoom: float, outside: _Outside) -> Tensor:
    """Bilinear samples (C, H, W) in float64, of a picture first reduced to about its final size.

    The reduction keeps fine patterns from aliasing. The grid counts in the picture's sides, so rounding the
    reduced size does not change the zoom.
    """
    source = image[None].double()
    if zoom > 1:
        size = [max(1, round(side / zoom)) for side in image.shape[-2:]]
        source = F.interpolate(source, size=size, mode="bilinear", antialias=True, align_corners=False)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode=outside, align_corners=False)[0]


def _jitter_color(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Each factor 1 leaves the picture as it is; float (3, H, W) in [-1, 1], both ways."""
    picture = (image + 1) / 2 * brightness
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
    mean = (picture * weights).sum(dim=0).mean()
    picture = mean + contrast * (picture - mean)
    grey = (picture * weights).sum(dim=0, keepdim=True)
    picture = grey + saturation * (picture - grey)
    return picture.clamp(0, 1) * 2 - 1

"""The adaptive augmentation: an affine map of the picture before the VAE, and two further kinds.

In: the affine map, and drawing one variant of a picture and its loss mask. Not in: when a picture is augmented (the
indicator decides), how many variants there are and their latents (`latent_bank`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

COLOR_RANGE = 0.2  # ours: brightness, contrast and saturation change by at most this share
PUBLISHED_ZOOM, PUBLISHED_SIDE = 3.0, 128  # reported for SDXL, where 1024 pixels are 128 latents
Fill = Literal["black", "reflect"]
_Outside = Literal["zeros", "border", "reflection"]
_OUTSIDE: dict[str, _Outside] = {"black": "zeros", "reflect": "reflection"}  # in `grid_sample`'s terms
LUMA = (0.299, 0.587, 0.114)  # Rec. 601: the perceived brightness of red, green and blue


@dataclass(frozen=True)
class Augmentation:
    """What may vary: `kinds` of "affine", "flip" and "color"; zoom, angle and fill belong to the affine map.

    `max_zoom`: at least 1. `max_degrees`: in either direction. `mask_fill`: whether the fill counts for no loss.
    """

    kinds: tuple[str, ...] = ()
    max_zoom: float = 1.0
    max_degrees: float = 0.0
    fill: Fill = "black"
    mask_fill: bool = False


def zoom_limit(max_zoom: float | Literal["auto"], side: int) -> float:
    """The furthest that pictures are zoomed out, at least 1; `side`: latents per side of a square picture.

    `auto` (ours): the shrunken picture keeps as many latents as the published range leaves on SDXL, 43 per side. That
    is 3 for 128 latents, 1.5 for 64, and 1 (rotation only) for 42 and fewer. Never above 3.
    """
    if max_zoom != "auto":
        return max_zoom
    return min(PUBLISHED_ZOOM, max(1.0, PUBLISHED_ZOOM * side / PUBLISHED_SIDE))


def affine(
    image: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float, fill: Fill = "black"
) -> tuple[Tensor, Tensor]:
    """Shrink, rotate and move a picture on a canvas of its own size.

    Reported: an affine map before the VAE, and its ranges. Paper (figure): the black fill. Ours: the antialiasing, and
    `reflect`.

    Args:
        image: float (C, H, W) in [-1, 1].
        zoom: above 0; the content's sides become 1/zoom of the canvas.
        degrees: counter-clockwise as seen, about the content's centre; without shear at any aspect ratio.
        shift_x: offset of the content's centre, as a fraction of the canvas; right is positive.
        shift_y: likewise; down is positive.
        fill: outside the content: black (-1), or the picture mirrored at its edges.

    Returns:
        The moved picture, like `image`; and bool (1, H, W), True if a pixel's centre lies in the content.
    """
    assert image.dim() == 3 and image.is_floating_point(), "image must be float (C, H, W)"
    grid = _source_grid(image, zoom, degrees, shift_x, shift_y)
    # Sampled as brightness above black, so that the zeros outside the content, and its soft edge, are black.
    above_black = _sample(image + 1, grid, zoom, outside=_OUTSIDE[fill])
    inside = (grid.abs() <= 1 + 1e-9).all(dim=-1)  # the margin absorbs rounding of centres on the very edge
    return (above_black - 1).clamp(-1, 1).to(image.dtype), inside


def affine_mask(
    mask: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float, fill: Fill = "black"
) -> Tensor:
    """The loss mask that matches `affine`: float (1, H, W) in [0, 1], in and out (ours).

    A black fill continues the mask's own edge, because it extends the background. So a mask that excludes the
    background excludes the fill, and one that includes it trains the fill as the paper does. With a mirrored fill the
    mask is mirrored too.
    """
    grid = _source_grid(mask, zoom, degrees, shift_x, shift_y)
    outside = "border" if fill == "black" else _OUTSIDE[fill]
    return _sample(mask, grid, zoom, outside=outside).clamp(0, 1).to(mask.dtype)


def draw_variant(
    image: Tensor, mask: Tensor | None, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One random variant of a picture and its loss mask, and where the picture lies in it.

    `affine` (reported; uniform draws are ours): zoom in [1, max_zoom], angle within +-max_degrees, position uniform
    among those that keep the upright content inside the canvas. `flip` (ours): half of the variants are mirrored.
    `color` (ours): brightness, contrast and saturation by up to 20% each, on the picture only, so a black fill stays
    black. The number of draws does not depend on `kinds`, so adding a kind leaves the other kinds' draws unchanged.

    Args:
        image: float (3, H, W) in [-1, 1].
        mask: float (1, H, W) in [0, 1], or None.
        augmentation: `fill` as in `affine`.
        generator: a CPU generator; exactly eight numbers are drawn.

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
    room = 1 - 1 / zoom  # the fraction of the canvas around the content
    placement = (zoom, augmentation.max_degrees * (2 * turn - 1), room * (x - 0.5), room * (y - 0.5))
    image, inside = affine(image, *placement, fill)
    return image, None if mask is None else affine_mask(mask, *placement, fill), inside


def _source_grid(image: Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float) -> Tensor:
    """The source position that each canvas pixel shows: float64 (1, H, W, 2), from -1 to 1.

    Rotated in pixels, because rotating in units of the sides would shear a picture that is not square. In float64,
    because float32 would misplace samples on a 1024-pixel side by up to 1e-4 pixels.
    """
    assert zoom > 0, "zoom must be above 0"
    height, width = image.shape[-2:]
    down = torch.arange(height, dtype=torch.float64) + 0.5 - height * (0.5 + shift_y)
    right = torch.arange(width, dtype=torch.float64) + 0.5 - width * (0.5 + shift_x)
    down, right = torch.meshgrid(down, right, indexing="ij")
    # The inverse map, from the canvas: clockwise. Rows run downwards, hence the signs.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    source_x = zoom * (cos * right - sin * down)
    source_y = zoom * (sin * right + cos * down)
    return torch.stack([source_x * (2 / width), source_y * (2 / height)], dim=-1)[None].to(image.device)


def _sample(image: Tensor, grid: Tensor, zoom: float, outside: _Outside) -> Tensor:
    """Bilinear samples (C, H, W) in float64, from a picture first reduced to about its final size.

    The reduction prevents aliasing of fine patterns. The grid is in units of the picture's sides, so rounding the
    reduced size does not change the zoom.
    """
    source = image[None].double()
    if zoom > 1:
        size = [max(1, round(side / zoom)) for side in image.shape[-2:]]
        source = F.interpolate(source, size=size, mode="bilinear", antialias=True, align_corners=False)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode=outside, align_corners=False)[0]


def _jitter_color(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Factors of 1 leave the picture unchanged; float (3, H, W) in [-1, 1], in and out."""
    picture = (image + 1) / 2 * brightness
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
    mean = (picture * weights).sum(dim=0).mean()
    picture = mean + contrast * (picture - mean)
    grey = (picture * weights).sum(dim=0, keepdim=True)
    picture = grey + saturation * (picture - grey)
    return picture.clamp(0, 1) * 2 - 1

"""One picture or mask in a host's layout: a float tensor, channels last.

In: checks of shape, type and range, and conversion to the trainer's own layout. Not in: picture files (`pictures`),
pairing pictures, captions and masks (`dataset`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .pictures import Color


def to_pixels(name: str, picture: Tensor, background: Color) -> tuple[Tensor, Tensor | None]:
    """Float (H, W, 1, 3 or 4) in [0, 1] -> uint8 (3, H, W), and the alpha float32 (1, H, W) if there is any."""
    picture = _checked(name, picture).permute(2, 0, 1)  # HWC -> CHW
    alpha = picture[3:] if picture.shape[0] == 4 else None
    rgb = picture[:3].expand(3, -1, -1)
    if alpha is not None:
        rgb = rgb * alpha + torch.tensor(background).view(3, 1, 1) / 255 * (1 - alpha)
    return (rgb * 255).round().to(torch.uint8).contiguous(), alpha


def to_mask(name: str, mask: Tensor) -> Tensor:
    """Float (H, W) in [0, 1], or bool -> float32 (1, H, W)."""
    mask = mask.float() if mask.dtype == torch.bool else mask
    return _checked(name, mask[..., None])[..., 0][None]


def unbatch(tensors: Sequence[Tensor] | Tensor, dims: int) -> list[Tensor]:
    """Single pictures of `dims` dimensions, from a batch or a list of pictures and batches."""
    is_one = isinstance(tensors, Tensor) or not hasattr(tensors, "__iter__")
    parts: Sequence[object] = [tensors] if is_one else list(tensors)
    single: list[Tensor] = []
    for part in parts:
        if not isinstance(part, Tensor):
            raise InputError(
                f"Pictures and masks are tensors, but one is of the type {type(part).__name__}: give float tensors."
            )
        if part.dim() not in (dims, dims + 1):
            layout = "(height, width, channels)" if dims == 3 else "(height, width)"
            raise InputError(f"A tensor has the shape {tuple(part.shape)}: give {layout}, or a batch of these.")
        single.extend([part] if part.dim() == dims else part.unbind(0))
    return single


def _checked(name: str, picture: Tensor) -> Tensor:
    """Float32 (H, W, C) on the CPU, clamped to [0, 1]. InputError: anything else."""
    height, width, channels = picture.shape
    if channels not in (1, 3, 4) or height * width == 0:
        raise InputError(f"{name} has the shape {tuple(picture.shape)}: give (height, width, 1, 3 or 4 channels).")
    if not picture.is_floating_point():
        raise InputError(f"{name} holds {picture.dtype} values: give floats from 0 to 1.")
    picture = picture.detach().to("cpu", torch.float32, copy=True)
    # Upscalers overshoot 0 and 1 slightly; a picture in -1..1 or 0..255 goes far beyond.
    if not bool(torch.isfinite(picture).all()) or picture.min() < -0.25 or picture.max() > 1.25:
        raise InputError(f"{name} has values outside 0 to 1 or not a number: give floats from 0 to 1.")
    return picture.clamp(0, 1)

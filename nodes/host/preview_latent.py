"""What a preview looks at: a user's picture, a latent, or pure noise, as one latent for the sampler."""

from __future__ import annotations

import math
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...apt_train.errors import InputError

_SDXL_VECTOR = 2816  # size of SDXL's extra conditioning, which only models for 1024 pixels have


def latent_of_picture(image: Tensor, vae: Any, model: Any) -> Tensor:
    """The first of a batch of pictures (N, H, W, C) -> (1, C, h, w), unscaled.

    It is shrunk if larger than the model's own size. InputError: no picture, or the VAE is for another kind of model.
    """
    from ...apt_train.data.tensor_pictures import unbatch
    from .vae_family import require_channels_of, require_vae_of

    require_channels_of(model, vae)
    require_vae_of(model, vae)
    first = unbatch(image, 3)[0]
    height, width = _fit(first.shape[:2], own_size(model), int(model.model.latent_format.spacial_downscale_ratio))
    pixels = first[None, :, :, :3].movedim(-1, 1)
    if pixels.shape[2:] != (height, width):
        pixels = comfy.utils.common_upscale(pixels, width, height, "area", "disabled")
    return _checked(vae.encode(pixels.movedim(1, -1)), model)


def latent_of_wire(latent: dict[str, Any], model: Any) -> Tensor:
    """The first entry of a LATENT. InputError: it is for another kind of model."""
    return _checked(latent["samples"][:1], model)


def empty_latent(model: Any, height: int = 0, width: int = 0) -> Tensor:
    """An empty latent of this size in pixels; 0: the model's own. With noise added it is pure noise."""
    format, side = model.model.latent_format, own_size(model)
    sides = ((given or side) // int(format.spacial_downscale_ratio) for given in (height, width))
    return torch.zeros(1, format.latent_channels, *sides)


def _checked(latent: Tensor, model: Any) -> Tensor:
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels or not latent.numel():
        raise InputError(
            f"The latent has the shape {tuple(latent.shape)}, the model reads {channels} channels of a still "
            "picture: wire a latent of the same kind of model."
        )
    if not torch.isfinite(latent).all():
        raise InputError("The latent holds values that are not numbers: run the VAE in float32 (--fp32-vae).")
    return latent.float().cpu()


def own_size(model: Any) -> int:
    """Pixels per side of the model's own size."""
    return 1024 if model.model.model_config.unet_config.get("adm_in_channels") == _SDXL_VECTOR else 512


def _fit(size: tuple[int, ...], side: int, multiple: int) -> tuple[int, int]:
    scale = min(1.0, side / math.sqrt(math.prod(size)))
    height, width = (max(multiple, round(length * scale / multiple) * multiple) for length in size)
    return height, width

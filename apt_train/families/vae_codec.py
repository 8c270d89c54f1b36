"""Converts between pictures and the UNet's latent space with a diffusers VAE."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor


@dataclass(frozen=True)
class VaeCodec:
    """`encode` and `decode` of `Components`. They run on the VAE's device, in its own dtype, outside autocast.

    SDXL's published VAE overflows in float16, so the loaders keep it in float32. Results are float32, on the VAE's
    device, without gradients.
    """

    vae: AutoencoderKL | AutoencoderTiny

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """float (N, 3, H, W) in [-1, 1] -> scaled mean and std, each (N, C, H/f, W/f); std None: fixed latents."""
        images = images.to(self.vae.device, self.vae.dtype)
        with self._exact():
            encoded = cast("Any", self.vae.encode(images))
        if isinstance(self.vae, AutoencoderTiny):
            return (encoded.latents.float() - self._shift) * self._scale, None
        posterior = encoded.latent_dist
        return (posterior.mean.float() - self._shift) * self._scale, posterior.std.float() * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> float32 images (N, 3, h*f, w*f), roughly in [-1, 1] (not clamped)."""
        raw = latents.to(self.vae.device).float() / self._scale + self._shift
        with self._exact():
            return self.vae.decode(raw.to(self.vae.dtype)).sample.float()  # type: ignore[union-attr]

    @property
    def factor(self) -> int:
        """Pixels per latent position, per side."""
        config = self.vae.config
        widths = config["encoder_block_out_channels" if isinstance(self.vae, AutoencoderTiny) else "block_out_channels"]
        return 2 ** (len(widths) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config["latent_channels"]

    @property
    def _scale(self) -> float:
        return self.vae.config["scaling_factor"]

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def _exact(self) -> AbstractContextManager[object]:
        kind = self.vae.device.type
        has_autocast = torch.amp.is_autocast_available(kind)  # not `meta`, where memory is estimated; in 2.4 not `mps`
        return torch.autocast(kind, enabled=False) if has_autocast else contextlib.nullcontext()

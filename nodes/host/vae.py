"""A wired VAE as the trainer's `encode` and `decode`: run by the host, which moves, batches and tiles it.

In: pictures to posterior and back, in the UNet's scale. Not in: when they are called (`apt_train.data.latent_bank`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .vae_family import require_channels_of, require_vae_of

TILED_ABOVE = 2048 * 2048  # pixels: above, encoding in one piece takes more memory than training


class HostVae:
    """`encode` and `decode` of `Components`, with a VAE and the latent scale of a MODEL."""

    def __init__(self, vae: Any, model: Any) -> None:
        vae.throw_exception_if_invalid()
        self._vae, self._base = vae, model.model
        require_channels_of(model, vae)
        require_vae_of(model, vae)

    @property
    def factor(self) -> int:
        """Pixels per latent position, per side."""
        return int(self._vae.spacial_compression_encode())

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """float (N, 3, H, W) in [-1, 1] -> scaled mean and std, each (N, C, H/f, W/f); std None: fixed latents."""
        pixels = ((images + 1) / 2).movedim(1, -1)  # NCHW -> NHWC, as on the host's wires
        with _moments(self._vae) as gives_moments:
            run = self._vae.encode_tiled if pixels.shape[1] * pixels.shape[2] > TILED_ABOVE else self._vae.encode
            raw = run(pixels).float().cpu()
        if not gives_moments:
            return self._base.process_latent_in(raw), None
        mean, logvar = raw.chunk(2, dim=1)
        std = (0.5 * logvar.clamp(-30, 20)).exp()
        scaled = self._base.process_latent_in(mean)
        return scaled, self._base.process_latent_in(mean + std) - scaled  # the scale is affine, for any latent format

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> float32 images (N, 3, h*f, w*f) in [-1, 1]."""
        images = self._vae.decode(self._base.process_latent_out(latents.float().cpu()))
        return images.movedim(-1, 1).float() * 2 - 1  # NHWC -> NCHW


class _Both(nn.Module):
    """Replaces taking the posterior's mode: passes on mean and log variance as they come from the encoder."""

    def forward(self, moments: Tensor) -> tuple[Tensor, None]:
        return moments, None


@contextlib.contextmanager
def _moments(vae: Any) -> Iterator[bool]:
    """Inside the block the VAE's encode returns mean and log variance joined; False if it has no variance."""
    engine = vae.first_stage_model
    mode = getattr(engine, "regularization", None)
    if type(mode).__name__ != "DiagonalGaussianRegularizer":
        yield False
        return
    channels = vae.latent_channels
    engine.regularization, vae.latent_channels = _Both(), 2 * channels
    try:
        yield True
    finally:
        engine.regularization, vae.latent_channels = mode, channels

"""MODEL, CLIP and VAE wires -> the trainer's `Components`, and the digest of their contents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...apt_train.families.components import Components
from ...apt_train.families.noise import NoiseSchedule
from ...apt_train.families.sd.published import FamilySpec, family_of
from ..hashing import AtPiece
from .model import UNET, family_spec, name_of, notes_of, schedule_of, unet_of
from .progress import stop_if_cancelled
from .text import require_clip, text_digest, text_encoders
from .vae import HostVae
from .weights import DigestCache


def require_one_model(model: Any, clip: Any, vae: Any) -> tuple[FamilySpec, HostVae]:
    """InputError: a kind that cannot be trained, or wires of different models."""
    family = family_spec(model)
    require_clip(clip, family)
    return family, HostVae(vae, model)


@dataclass(frozen=True)
class Wires:
    """The three wires of one model, checked to belong together."""

    model: Any
    clip: Any
    vae: Any
    family: FamilySpec
    schedule: NoiseSchedule
    codec: HostVae

    @staticmethod
    def checked(model: Any, clip: Any, vae: Any) -> Wires:
        """InputError, before anything costly: a kind that cannot be trained, or wires of different models."""
        family, codec = require_one_model(model, clip, vae)
        return Wires(model, clip, vae, family, schedule_of(model), codec)

    @property
    def device(self) -> torch.device:
        """The MODEL's compute device: the host's, or the one chosen by a Select Model Device node."""
        return self.model.load_device

    def digest(self, cache: DigestCache, at_piece: AtPiece) -> str:
        """The digest of everything that training depends on: weights with their LoRAs, schedule, clip skip.

        `at_piece`: called before each weight that is hashed.
        """
        parts = [
            cache.of(self.model, UNET, at_piece),
            text_digest(self.clip, self.family, cache, at_piece),
            f"{cache.of_module(self.vae.first_stage_model, at_piece)} {self.vae.vae_dtype}",
            self.schedule.prediction,
            hashlib.sha256(self.schedule.alphas_cumprod.numpy().tobytes()).hexdigest(),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def components(self, dtype: torch.dtype, digest: str) -> Components:
        """Copies of the weights in `dtype`, on the CPU; Cancel works at every call of the UNet and the VAE."""
        unet = unet_of(self.model, self.family, dtype)
        unet.register_forward_pre_hook(lambda _module, _inputs: stop_if_cancelled())
        encoders = text_encoders(self.clip, self.family)
        return Components(
            unet, encoders, self._encode, self._decode, self.schedule,
            family_of(unet.config, len(encoders), self.codec.factor),
            digest=digest, source=name_of(self.model), notes=notes_of(self.model),
        )  # fmt: skip

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        stop_if_cancelled()
        return self.codec.encode(images)

    def _decode(self, latents: Tensor) -> Tensor:
        stop_if_cancelled()
        return self.codec.decode(latents)

"""The latent bank: the VAE's posterior of every picture and of its augmented variants.

In: encoding one by one, when to add variants, loss masks at latent size. Not in: drawing a variant (`augment`), a
step's choice of variant and noise (`batch`), moving the VAE (the trainer's `on_device` context).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..events import Busy
from ..rng import generator
from .augment import Augmentation, draw_variant
from .buckets import Prepared

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
BLOCK = 4  # variants are added this many at a time


@dataclass(frozen=True)
class Encoder:
    """The VAE as the bank uses it.

    `encode`: float32 (1, 3, H, W) in [-1, 1] -> (mean, std or None), each (1, C, H/f, W/f), on any device. `factor`: f,
    pixels per latent position, per side. `on_device`: a context around each round of encoding in which the VAE is on
    the compute device.
    """

    encode: Encode
    factor: int
    on_device: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class _Entry:
    """One encoded picture, float32 on the CPU."""

    mean: Tensor  # (C, h, w)
    std: Tensor | None  # (C, h, w); None: the latents are fixed
    mask: Tensor | None  # (1, h, w), the loss weights; None: everything counts fully


class LatentBank:
    """Posterior mean and std of every picture: unaltered (variant 0) and augmented (1 to `variants`).

    Variant v of picture i depends only on (seed, i, v) and is encoded alone. So neither order and size of the blocks
    nor resuming changes it. The bank is ours; the paper augments before the VAE and gives no details.
    """

    def __init__(
        self,
        prepared: list[Prepared],
        encoder: Encoder,
        augmentation: Augmentation | None = None,
        *,
        seed: int,
        max_variants: int = 0,
        on_encode: Busy = lambda kind, done, total: None,
    ) -> None:
        """
        Args:
            prepared: the pictures; their positions in this list are the image indices.
            augmentation, seed: for the variants, see `draw_variant`.
            max_variants: the most augmented variants per picture; 0: the pictures are dropped once encoded.
            on_encode: called before each picture with its kind, the number done in this round, and the round's total.
                If it raises, the exception passes through and the bank stays as before the round.

        Raises:
            InputError: the VAE returns values that are not finite.
        """
        self._prepared = list(prepared)
        self._encoder, self._augmentation, self._seed = encoder, augmentation or Augmentation(), seed
        self._max_variants = max_variants
        self._on_encode = on_encode
        self.size_ids = [item.size_ids for item in self._prepared]  # per image, also of its variants (ours)
        self.buckets: dict[tuple[int, int], list[int]] = {}
        """Image indices by bucket (height, width) in pixels."""
        for index, item in enumerate(self._prepared):
            self.buckets.setdefault(item.crop.bucket, []).append(index)
        self._entries = self._encoded("pictures", [0])  # per variant, per image
        if max_variants == 0:
            self._prepared = []

    @property
    def variants(self) -> int:
        """The current number of augmented variants per picture; 0 at the start."""
        return len(self._entries) - 1

    @property
    def fixed(self) -> bool:
        """Whether the encoder returns no std, so that a picture has one latent."""
        return self._entries[0][0].std is None

    def ensure_variants(self, count: int) -> None:
        """Add variants until each picture has `count` (at most `max_variants`); never removes any.

        Raises:
            InputError: the VAE returns values that are not finite; the bank then stays as before the call.
        """
        wanted = range(self.variants + 1, min(count, self._max_variants) + 1)
        if wanted:
            self._entries += self._encoded("variants", wanted)

    def wanted_variants(self, p_aug_max: float, p_max: float) -> int:
        """The number of variants there should be now (ours): none without augmentation, all at its peak.

        Args:
            p_aug_max: the highest augmentation probability of any bin.
            p_max: the maximum it can reach.
        """
        if p_aug_max <= 0 or p_max <= 0:
            return 0
        blocks = math.ceil(min(1.0, p_aug_max / p_max) * self._max_variants / BLOCK)
        return min(blocks * BLOCK, self._max_variants)

    def latent(self, image: int, variant: int, noise: Tensor) -> Tensor:
        """mean + std * noise, all float32 (C, h, w) on the CPU; just the mean for fixed latents."""
        entry = self._entries[variant][image]
        return entry.mean.clone() if entry.std is None else entry.mean + entry.std * noise

    def mask(self, image: int, variant: int) -> Tensor | None:
        """Loss weights float32 (1, h, w) in [0, 1] by area averaging; None if everything counts fully.

        The user's mask, moved with the picture. With the augmentation's `mask_fill` it is multiplied by the picture's
        area on the canvas, which excludes the fill from the loss (ours; by default it is trained, as in the paper's
        figure). A mask may be 0 everywhere if a variant shows only masked parts.
        """
        return self._entries[variant][image].mask

    def latent_shape(self, image: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latents."""
        channels, height, width = self._entries[0][image].mean.shape
        return channels, height, width

    def _encoded(self, kind: Literal["pictures", "variants"], variants: Sequence[int]) -> list[list[_Entry]]:
        """One round of encoding: every picture in each of these variants."""
        done, total = itertools.count(), len(variants) * len(self._prepared)
        found: list[list[_Entry]] = [[] for _ in variants]
        with self._encoder.on_device():
            for entries, variant in zip(found, variants, strict=True):
                for image in range(len(self._prepared)):
                    self._on_encode(kind, next(done), total)
                    entries.append(self._encode(image, variant))
        return found

    @torch.no_grad()
    def _encode(self, image: int, variant: int) -> _Entry:
        item = self._prepared[image]
        picture, mask = item.image, item.mask
        if variant:
            draws = generator(self._seed, "variant", image, variant)
            picture, mask, inside = draw_variant(picture, mask, self._augmentation, draws)
            mask = _without_fill(mask, inside) if self._augmentation.mask_fill else mask
        # One at a time, because a VAE's results differ in the last digits with the batch.
        mean, std = self._encoder.encode(picture[None])
        mean, std = _kept(mean), None if std is None else _kept(std)
        expected = picture.shape[-2] // self._encoder.factor, picture.shape[-1] // self._encoder.factor
        assert tuple(mean.shape[-2:]) == expected, f"encode gave {tuple(mean.shape)} for {tuple(picture.shape)}"
        if not all(bool(torch.isfinite(part).all()) for part in (mean, std) if part is not None):
            raise InputError(
                f"The VAE overflows or is damaged, as its latents of {item.name} are not finite: use it in float32 or "
                "bfloat16, or take another."
            )
        return _Entry(mean, std, None if mask is None else F.avg_pool2d(mask[None], self._encoder.factor)[0])


def _kept(batch: Tensor) -> Tensor:
    """The single entry of a batch, in the form the bank keeps."""
    assert batch.shape[0] == 1
    return batch[0].detach().to("cpu", torch.float32, copy=True)


def _without_fill(mask: Tensor | None, inside: Tensor) -> Tensor | None:
    """The loss mask times the picture's area on the canvas; None if nothing is masked."""
    if bool(inside.all()):
        return mask
    return inside.float() if mask is None else mask * inside

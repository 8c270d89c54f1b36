"""Drawing the samples of an optimizer step: timestep, picture or variant, noise.

Each sample has its own generator, from (seed, step, index in the global batch). So a batch of 4, four
accumulated batches of 1 and a resumed run draw alike. Timesteps come before pictures, because the noise level
decides how likely augmentation is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.levels import levels_of, parts_of
from ..families.network import Process
from ..families.swapped import sent
from ..rng import generator
from .latent_bank import LatentBank

Key = tuple[int, str, int]  # keys a step's draws: the run's seed, the stream's name, the step


@dataclass(frozen=True)
class Sample:
    """One draw, on the CPU."""

    timestep: int
    image: int
    variant: int  # 0: the unaltered picture
    latent: Tensor  # (C, h, w)
    noise: Tensor  # (C, h, w)
    mask: Tensor | None  # (1, h, w)
    size_ids: list[float]  # of its picture


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads."""

    latents: Tensor  # (N, C, h, w)
    noise: Tensor  # (N, C, h, w)
    timesteps: Tensor  # int64 (N,)
    captions: list[str]  # with {subject}
    mask: Tensor | None  # (N, 1, h, w)
    size_ids: Tensor  # (N, 6): SDXL's original height, width, crop top, left, target height, width
    images: Sequence[int] = ()  # each sample's picture, by its place in the set


def draw_samples(bank: LatentBank, p_aug: Tensor, key: Key, *, count: int, process: Process) -> list[Sample]:
    """`count` samples from one bucket; `p_aug`: float (bins,), the chance of augmentation per noise-level bin."""
    bucket, chances = _draw_bucket(bank, key), p_aug[parts_of(levels_of(process), len(p_aug))]
    return [_draw_sample(bank, bucket, chances, process, generator(*key, index)) for index in range(count)]


def _draw_bucket(bank: LatentBank, key: Key) -> list[int]:
    """The pictures of one bucket, drawn in proportion to their number."""
    buckets = list(bank.buckets.values())
    sizes = torch.tensor([len(bucket) for bucket in buckets])
    anchor = int(torch.randint(int(sizes.sum()), (1,), generator=generator(*key, "bucket")))
    return buckets[int((sizes.cumsum(0) <= anchor).sum())]


def _draw_sample(
    bank: LatentBank, bucket: list[int], chances: Tensor, process: Process, draws: torch.Generator
) -> Sample:
    """`chances`: of augmentation, float (num_timesteps,)."""
    timestep = process.draw(draws)
    chance, pick, choice = map(float, torch.rand(3, generator=draws, dtype=torch.float64))
    image = bucket[int(pick * len(bucket))]
    augmented = chance < float(chances[timestep]) and bank.variants > 0
    variant = 1 + int(choice * bank.variants) if augmented else 0
    posterior, noise = torch.randn(2, *bank.latent_shape(image), generator=draws)
    latent, mask = bank.latent(image, variant, posterior), bank.mask(image, variant)
    return Sample(timestep, image, variant, latent, noise, mask, bank.size_ids[image])


def unaltered(bank: LatentBank, image: int, timestep: int, *key: int | str) -> Sample:
    """A picture without augmentation and mask at this timestep, with its noise; `key`: of the draws."""
    posterior, noise = torch.randn(2, *bank.latent_shape(image), generator=generator(*key))
    return Sample(timestep, image, 0, bank.latent(image, 0, posterior), noise, None, bank.size_ids[image])


def collate(samples: Sequence[Sample], captions: Sequence[str], device: torch.device) -> Batch:
    """Samples of one bucket as a batch on `device`; `captions` are indexed by picture."""
    return Batch(
        latents=sent(torch.stack([sample.latent for sample in samples]), device),
        noise=sent(torch.stack([sample.noise for sample in samples]), device),
        timesteps=sent(torch.tensor([sample.timestep for sample in samples]), device),
        captions=[captions[sample.image] for sample in samples],
        mask=_collate_masks(samples, device),
        size_ids=sent(torch.tensor([sample.size_ids for sample in samples]), device),
        images=[sample.image for sample in samples],
    )


def _collate_masks(samples: Sequence[Sample], device: torch.device) -> Tensor | None:
    if all(sample.mask is None for sample in samples):
        return None
    whole = [torch.ones(1, *s.latent.shape[1:]) if s.mask is None else s.mask for s in samples]
    return sent(torch.stack(whole), device)

"""A LoRA's training pictures, prepared as in training, and the noise they are tried with.

In: pictures -> latents, samples. Not in: the model's predictions on them (`losses`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..data.batch import Sample, unaltered
from ..data.buckets import bucket_multiple, prepare
from ..data.dataset import ImageSet
from ..data.latent_bank import LatentBank
from ..families.levels import timestep_at
from ..text.captions import SUBJECT
from ..training.vae_visits import encoder_of
from .asked import Asked
from .subject import Subject
from .with_lora import WithLora

MOST = 10
SEED = 0


@dataclass(frozen=True)
class Pictures:
    """The pictures' captions (which hold `{subject}`), notes about them, and what is tried on each.

    `samples`: per picture `draws` noises in each bin, at evenly spread noise levels, bin by bin.
    """

    captions: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    samples: list[list[Sample]] = field(default_factory=list[list[Sample]])


def read_pictures(
    images: ImageSet, lora: WithLora, subject: Subject, asked: Asked, side: int, busy: Callable[[], object]
) -> Pictures:
    """Encode at most `MOST` of the pictures in squares of about `side` pixels; `busy` is called before each.

    InputError: a picture or a caption that cannot be trained on.
    """
    components, chosen = lora.components, _some(images)
    notes = list(images.notes)
    if len(chosen.images) < len(images.images):
        notes.append(f"Of {len(images.images)} pictures {len(chosen.images)} were looked at.")
    captions = [subject.caption(image.caption or asked.prompt) for image in chosen.images]
    if not any(SUBJECT in text for text in captions):
        notes.append("No caption names the subject, so the trigger was only tried on the prompt.")
    prepared = prepare(chosen, side, bucket_multiple(0, side, components.size_multiple))
    encoder = encoder_of(components, lora.device)
    bank = LatentBank(prepared, encoder, seed=asked.seed, on_encode=lambda _kind, _done, _total: busy())
    samples = [list(_samples(bank, image, asked, components.levels)) for image in range(len(captions))]
    return Pictures(captions, notes, samples)


def _samples(bank: LatentBank, image: int, asked: Asked, levels: Tensor) -> Iterator[Sample]:
    """`levels`: the noise level of each timestep."""
    for level, draw in itertools.product(range(asked.bins), range(asked.draws)):
        timestep = timestep_at(levels, (level + (draw + 0.5) / asked.draws) / asked.bins)
        yield unaltered(bank, image, timestep, SEED, "check-up", image, level, draw)


def _some(images: ImageSet) -> ImageSet:
    """At most `MOST` pictures, evenly spread."""
    count = len(images.images)
    chosen = images.images if count <= MOST else [images.images[k * count // MOST] for k in range(MOST)]
    return ImageSet(chosen, images.digest, images.notes)

"""Feeds pictures to the loop: latents with their captions, and the batches drawn from them.

In: building the subject's stream and the prior-preservation stream. Not in: drawing a single sample (batch.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.augment import Augmentation, zoom_limit
from ..data.batch import Batch, collate, draw_samples
from ..data.buckets import bucket_multiple, bucket_notes, prepare
from ..data.dataset import ImageSet
from ..data.latent_bank import LatentBank
from ..families.network import Process
from ..text.captions import class_caption, subject_captions
from .notes import OF_PRIOR, notes_of
from .plan import Plan
from .vae_visits import encoder_of

if TYPE_CHECKING:
    from ..events import Busy


@dataclass
class Stream:
    """Pictures with their latents and captions, and the batches drawn from them.

    `name` and the run's `seed` key the draws, so that two streams differ.
    """

    name: str
    seed: int
    process: Process
    bank: LatentBank
    captions: list[str]
    example: Tensor  # the first picture as trained on, uint8 (3, H, W), for the attention figure

    def draw(self, p_aug: Tensor, step: int, *, count: int, batch_size: int, device: torch.device) -> list[Batch]:
        """The batches of one optimizer step: `count` samples, `batch_size` at a time."""
        key = (self.seed, self.name, step)
        samples = draw_samples(self.bank, p_aug, key, count=count, process=self.process)
        chunks = [samples[i : i + batch_size] for i in range(0, count, batch_size)]
        return [collate(chunk, self.captions, device) for chunk in chunks]


def build_streams(plan: Plan, notify: Callable[[str], None], busy: Busy) -> tuple[Stream, Stream | None]:
    """The subject's stream and, if there are class pictures, the prior-preservation stream.

    `notify` gets the notes on sizes and, at the end, those on the rest of the plan.
    """
    subject = _stream("subject", plan, plan.images, subject_captions(plan.images, plan.config), notify, busy)
    preservation, config, images = None, plan.config, plan.prior_images
    if images is not None:
        plain, word = config.data.class_caption, config.class_word
        texts = [class_caption(image.caption or plain, word) for image in images.images]
        preservation = _stream("preservation", plan, images, texts, notify, busy)
    for note in notes_of(plan):
        notify(note)
    return subject, preservation


def _stream(
    name: str, plan: Plan, images: ImageSet, captions: list[str], notify: Callable[[str], None], busy: Busy
) -> Stream:
    components, config, resolution = plan.components, plan.config, plan.side
    multiple = bucket_multiple(config.data.bucket_multiple, resolution, components.size_multiple)
    prepared = prepare(images, resolution, multiple)
    for note in bucket_notes(prepared, config.optimizer.batch_size):
        notify(note if name == "subject" else f"{OF_PRIOR}{note}")
    variants = config.apt.augment_variants if name == "subject" else 0
    encoder = encoder_of(components, plan.device, alone=plan.sets_aside)
    bank = LatentBank(prepared, encoder, _augmentation(plan), seed=config.seed, max_variants=variants, on_encode=busy)
    example = ((prepared[0].image + 1) * 127.5).round().to(torch.uint8)
    return Stream(name, config.seed, components.schedule, bank, captions, example)


def _augmentation(plan: Plan) -> Augmentation:
    apt = plan.config.apt
    zoom = zoom_limit(apt.max_zoom, plan.side // plan.components.family.vae_factor)
    return Augmentation(apt.augment_kinds, zoom, apt.max_degrees, apt.augment_fill, plan.objective.mask_fill)

"""Pictures on their way into the loop: latents and captions side by side, and the draws from them.

In: the subject's stream and the prior-preservation stream, built from picture sets. Not in: the single draw (batch.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.augment import zoom_limit
from ..data.batch import Batch, collate, draw_samples, size_ids_of
from ..data.buckets import bucket_multiple, bucket_notes, prepare
from ..data.dataset import ImageSet
from ..data.latent_bank import LatentBank, OnEncode
from ..families.components import Components
from ..text.captions import class_caption, subject_captions
from .plan import Plan


@dataclass
class Stream:
    """Pictures with their latents and captions, and the draws from them."""

    name: str  # enters the draws, so that two streams draw apart
    bank: LatentBank
    captions: list[str]
    size_ids: list[list[float]]
    example: Tensor  # the first picture as trained on, uint8 (3, H, W), for the attention figure

    def draw(
        self,
        p_aug: Tensor,
        *,
        count: int,
        batch_size: int,
        num_timesteps: int,
        seed: int,
        step: int,
        mask_fill: bool,
        device: torch.device,
    ) -> list[Batch]:
        """The batches of one optimizer step: `count` samples, `batch_size` at a time."""
        samples = draw_samples(
            self.bank,
            p_aug,
            count=count,
            num_timesteps=num_timesteps,
            seed=seed,
            step=step,
            stream=self.name,
            mask_fill=mask_fill,
        )
        chunks = [samples[i : i + batch_size] for i in range(0, count, batch_size)]
        return [collate(chunk, self.captions, self.size_ids, device) for chunk in chunks]


def build_streams(plan: Plan, notify: Callable[[str], None], busy: OnEncode) -> tuple[Stream, Stream | None]:
    """The subject's stream and, where there are pictures of the class, the prior-preservation stream."""
    config = plan.config
    subject = _stream("subject", plan, plan.images, subject_captions(plan.images, config), notify, busy)
    if plan.prior_images is None:
        return subject, None
    texts = [
        class_caption(image.caption or config.data.class_caption, config.class_word)
        for image in plan.prior_images.images
    ]
    return subject, _stream("preservation", plan, plan.prior_images, texts, notify, busy)


def _stream(
    name: str, plan: Plan, images: ImageSet, captions: list[str], notify: Callable[[str], None], busy: OnEncode
) -> Stream:
    components, config, resolution = plan.components, plan.config, plan.side
    multiple = bucket_multiple(config.data.bucket_multiple, resolution, components.size_multiple)
    prepared = prepare(images, resolution, multiple)
    for note in bucket_notes(prepared):
        notify(note)
    bank = LatentBank(
        prepared,
        components.encode,
        seed=config.seed,
        kinds=config.apt.augment_kinds,
        max_zoom=zoom_limit(config.apt.max_zoom, resolution // components.family.vae_factor),
        max_degrees=config.apt.max_degrees,
        fill=config.apt.augment_fill,
        max_variants=config.apt.augment_variants if name == "subject" else 0,
        vae_factor=components.family.vae_factor,
        on_device=lambda: vae_on(components, plan.device, alone=plan.sets_aside),
        on_encode=busy,
    )
    bank.encode_plain()
    example = ((prepared[0].image + 1) * 127.5).round().to(torch.uint8)
    return Stream(name, bank, captions, [size_ids_of(picture) for picture in prepared], example)


@contextlib.contextmanager
def vae_on(components: Components, device: torch.device, *, alone: bool = False) -> Generator[None]:
    """The VAE on the compute device for as long as the block lasts; `alone`: the network's frozen weights leave it."""
    with _aside(components.unet, device) if alone else contextlib.nullcontext():
        if components.vae is None:
            yield
            return
        components.vae.to(device)
        try:
            yield
        finally:
            components.vae.to("cpu")


@contextlib.contextmanager
def _aside(network: nn.Module, device: torch.device) -> Generator[None]:
    """Copies are exact, so nothing changes. What is trained stays, with the optimizer's moments of it."""
    moved = [one for one in network.parameters() if not one.requires_grad and one.device.type == device.type]
    try:
        for parameter in moved:
            parameter.data = parameter.data.to("cpu")
        yield
    finally:
        for parameter in moved:
            parameter.data = parameter.data.to(device)

"""The sample that illustrates the numbers: one picture of the prompt from the model in its current state."""

from __future__ import annotations

import torch
from PIL import Image

from ..sample.sampler import Drawing, Sampler
from ..text.conditioning import Conditioner
from ..training.streams import vae_on
from .findings import Asked
from .subject import Subject


def drawn(
    sampler: Sampler, conditioner: Conditioner, subject: Subject, asked: Asked, *, tuned: bool
) -> list[Image.Image]:
    """One picture, or none if none are wanted."""
    if not asked.sample_steps:
        return []
    with torch.no_grad(), vae_on(sampler.components, torch.device(sampler.device)):
        text = conditioner.encode([subject.caption(asked.prompt)], tuned=tuned)
        nothing = conditioner.encode([""], tuned=False)
        return sampler.draw(text, nothing, Drawing(asked.seed, asked.sample_steps, asked.guidance))

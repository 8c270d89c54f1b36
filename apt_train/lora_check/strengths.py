"""Measures and samples one strength after another, adding lower ones if the recommendation lies below.

In: what is measured when, and the sample that illustrates it. Not in: the measures (`measures`), the rule
(`recommend`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..sample.sampler import Drawing, Sampler, calls_told
from ..training.vae_visits import vae_on
from .findings import AtStrength, Recommendation
from .losses import Losses
from .measures import Measures
from .pictures import Pictures, read_pictures
from .prompts import prompts_of
from .recommend import recommended
from .subject import Subject
from .with_lora import WithLora

if TYPE_CHECKING:
    from ..data.dataset import ImageSet
    from ..text.conditioning import Conditioner
    from .asked import Asked

LOWER = 3  # how often the lowest strength may be halved while the recommendation lies below it
LOWEST = 0.1

AtCall = Callable[[int, int], object]  # (finished network calls, all of them)


class Strengths:
    """A LoRA's strengths in progress. `measure` fills `points` and `samples` (the prior's first)."""

    def __init__(self, ready: WithLora, subject: Subject, asked: Asked, images: ImageSet | None, busy: AtCall) -> None:
        self._ready, self._subject, self._asked, self._busy = ready, subject, asked, busy
        side = asked.resolution or ready.components.family.resolution
        self._shared = subject.conditioner(ready.components)
        ask = functools.partial(busy, 0, 0)
        pictures = Pictures() if images is None else read_pictures(images, ready, subject, asked, side, ask)
        self.pictures_used, self.notes = len(pictures.captions), pictures.notes
        self.prompts = prompts_of(asked, subject, pictures.captions)
        rows = asked.rows or (1 if side > 768 else 4)
        self._sampler = Sampler(ready.components, (side, side), ready.device, ready.dtype, rows, self.notes.append)
        self._losses = Losses(self._sampler, pictures, asked)
        self.points: list[AtStrength] = []
        self.samples: list[Image.Image] = []

    @property
    def recommendation(self) -> Recommendation:
        return recommended(self.points)

    def measure(self) -> None:
        """Measure everything requested. InputError: at some strength the model's output is not finite."""
        prior, each = Measures.calls(self._losses, self.prompts)
        drawing, count = self._asked.sample_steps, len(self._asked.strengths)
        total = prior + drawing + count * (each + drawing)
        with calls_told(self._ready.components.unet, lambda made: self._busy(made, max(total, made + 1))):
            measures = Measures(self._losses, self.prompts, self._shared)
            self.samples = self._drawn(self._shared, tuned=False)
            for strength in self._asked.strengths:
                self._try(strength, measures)
            for _ in range(LOWER):
                if not self.recommendation.below or self.points[0].strength < LOWEST:
                    break
                self._try(self.points[0].strength / 2, measures)

    def _try(self, strength: float, measures: Measures) -> None:
        """Measure and sample one strength, in its place among the others."""
        place = sum(point.strength < strength for point in self.points)
        with self._ready.at(strength):
            # A LoRA on the text encoders changes the encoding of every text.
            changes = self._ready.placement.changes_text
            conditioner = self._subject.conditioner(self._ready.components) if changes else self._shared
            self.points.insert(place, measures.at(strength, conditioner))
            self.samples[place + 1 : place + 1] = self._drawn(conditioner, tuned=True)

    @torch.no_grad()
    def _drawn(self, conditioner: Conditioner, *, tuned: bool) -> list[Image.Image]:
        """One picture of the prompt from the model in its current state, or none if none are wanted."""
        asked = self._asked
        if not asked.sample_steps:
            return []
        with vae_on(self._ready.components, self._ready.device):
            text = conditioner.encode([self._subject.caption(asked.prompt)], tuned=tuned)
            nothing = conditioner.encode([""], tuned=False)
            return self._sampler.draw(text, nothing, Drawing(asked.seed, asked.sample_steps, asked.guidance))

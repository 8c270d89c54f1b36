"""What a LoRA does at one strength, compared with the prior on the same noise: losses, drift, attention.

All measures are those of training: the indicator's loss gap (`losses`), the drift along the prior's guided trajectories
(`drift`), attention over matched columns (`attention`). Nothing is trained here.

In: a model at one strength -> an `AtStrength`. Not in: which strengths (`strengths`), the conclusion (`recommend`).
"""

from __future__ import annotations

import torch

from ..sample.drift import drift_of, share_of
from ..sample.sampler import Sampler
from ..text.conditioning import Conditioner
from .attention import Looking, capture_of
from .drift import Trails
from .findings import Asked, AtStrength
from .gain import gain_of
from .losses import Losses
from .pictures import Pictures
from .prompts import Prompts


class Measures:
    """Measures the model at its current strength. Call `begin` first."""

    def __init__(self, sampler: Sampler, pictures: Pictures | None, prompts: Prompts, asked: Asked) -> None:
        self._sampler, self._prompts = sampler, prompts
        self._losses, self._capture = Losses(sampler, pictures, asked), capture_of(sampler)
        self._prior_losses = torch.zeros(0)
        self._trails: Trails | None = None
        self._looking: Looking | None = None

    @property
    def calls(self) -> tuple[int, int]:
        """The number of network calls: for the prior, and per strength."""
        rows = self._sampler.batch_size
        making, measuring = Trails.calls(self._prompts, rows)
        looks = -(-len(self._prompts.named) // rows) if self._capture else 0
        return self._losses.calls + making + looks, self._losses.calls + measuring + looks

    def begin(self, conditioner: Conditioner) -> None:
        """Measure the prior. Call it while the model is the prior."""
        self._trails = Trails(self._sampler, conditioner, self._prompts)
        if self._capture is not None:
            self._looking = Looking(self._sampler, self._capture, conditioner, self._trails.named, self._prompts.named)
        self._prior_losses = self._losses.at(0, conditioner)

    def at(self, strength: float, conditioner: Conditioner) -> AtStrength:
        """Measure the current model. InputError: at this strength its output is not finite."""
        assert self._trails is not None, "begin comes first"
        losses = self._losses.at(strength, conditioner)
        drifts, (named, others) = self._trails.drifts(strength, conditioner), self._trails.scale
        alignment, context = (None, None) if self._looking is None else self._looking.looks(conditioner)
        drift = drift_of(drifts.subject, drifts.unrelated)
        return AtStrength(
            strength, drift.subject, float(drifts.bare.mean()), drift.unrelated, drift.ratio,
            share_of(drifts.unrelated, others), share_of(drifts.bare, named),
            gain=gain_of(self._prior_losses, losses),
            alignment=alignment, context=context,
        )  # fmt: skip

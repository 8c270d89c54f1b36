"""What a LoRA does at one strength, compared with the prior on the same noise: losses, drift, attention.

All measures are those of training: the indicator's loss gap (`losses`), the drift along the prior's guided trajectories
(`drift`), attention over matched columns (`attention`). Nothing is trained here.

In: a model at one strength -> an `AtStrength`. Not in: which strengths (`strengths`), the conclusion (`recommend`).
"""

from __future__ import annotations

from ..sample.drift import drift_of, share_of
from ..text.conditioning import Conditioner
from .attention import Looking, capture_of
from .drift import Trails
from .findings import AtStrength
from .gain import gain_of
from .losses import Losses
from .prompts import Prompts


class Measures:
    """Measures the model at its current strength. Create it while the model is the prior, which it measures first."""

    def __init__(self, losses: Losses, prompts: Prompts, conditioner: Conditioner) -> None:
        sampler, self._losses = losses.sampler, losses
        self._trails, capture = Trails(sampler, conditioner, prompts), capture_of(sampler)
        self._looking = capture and Looking(sampler, capture, conditioner, self._trails.named, prompts.named)
        self._prior_losses = losses.at(0, conditioner)

    @staticmethod
    def calls(losses: Losses, prompts: Prompts) -> tuple[int, int]:
        """The number of network calls: for the prior, and per strength."""
        making, measuring = Trails.calls(losses.sampler, prompts)
        looks = len(losses.sampler.batches(len(prompts.named))) if capture_of(losses.sampler) else 0
        return losses.calls + making + looks, losses.calls + measuring + looks

    def at(self, strength: float, conditioner: Conditioner) -> AtStrength:
        """Measure the current model. InputError: at this strength its output is not finite."""
        losses = self._losses.at(strength, conditioner)
        drifts, (named, others) = self._trails.drifts(strength, conditioner), self._trails.scale
        alignment, context = (None, None) if self._looking is None else self._looking.looks(conditioner)
        drift = drift_of(drifts.subject, drifts.unrelated)
        return AtStrength(
            strength, subject=drift.subject, bare=float(drifts.bare.mean()), unrelated=drift.unrelated,
            ratio=drift.ratio, spill=share_of(drifts.unrelated, others), bare_spill=share_of(drifts.bare, named),
            gain=gain_of(self._prior_losses, losses), alignment=alignment, context=context,
        )  # fmt: skip

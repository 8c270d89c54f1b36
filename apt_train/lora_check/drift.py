"""How far the model has moved from the prior, along the prior's own trajectories: the drift of training.

In: the distances. Not in: the trajectories themselves (`sample.trajectories`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sample.sampler import Sampler
from ..sample.trajectories import Trail, Trajectories
from ..text.conditioning import Conditioner
from .prompts import Prompts
from .with_lora import check_finite


@dataclass(frozen=True)
class Drifts:
    """Mean squared difference of epsilon from the prior, per noise level of the trajectory, float32 (levels,)."""

    subject: Tensor  # the subject's prompts, with the trigger
    bare: Tensor  # the same prompts, with just the class word
    unrelated: Tensor


class Trails:
    """The prior's trajectories for all prompts. Create it while the model is the prior.

    `scale`: how far the prior itself moves if the prompt is left out, per level: on the subject's prompts, and on
    unrelated ones.
    """

    @torch.no_grad()
    def __init__(self, sampler: Sampler, conditioner: Conditioner, prompts: Prompts) -> None:
        self._trajectories, self._prompts = Trajectories(sampler), prompts
        count = len(prompts.named)
        self.named = self._trajectories.of(conditioner, prompts.named, count)
        self._unrelated = self._trajectories.of(conditioner, prompts.unrelated, count)
        made = (self.named, self._unrelated)
        nothing = [self._moved(conditioner, trails, [""] * count, tuned=False) for trails in made]
        check_finite(torch.cat(nothing), 0)
        self.scale = nothing[0], nothing[1]

    @staticmethod
    def calls(sampler: Sampler, prompts: Prompts) -> tuple[int, int]:
        """The number of network calls to make the trajectories, and to measure once."""
        making, measuring = Trajectories(sampler).calls(len(prompts.named))
        return 2 * (making + measuring), 3 * measuring

    @torch.no_grad()
    def drifts(self, strength: float, conditioner: Conditioner) -> Drifts:
        """The drifts of the current model. InputError: at this strength its output is not finite."""
        found = Drifts(
            self._moved(conditioner, self.named, self._prompts.named, tuned=True),
            self._moved(conditioner, self.named, self._prompts.named, tuned=False),
            self._moved(conditioner, self._unrelated, self._prompts.unrelated, tuned=False),
        )
        check_finite(torch.cat([found.subject, found.bare, found.unrelated]), strength)
        return found

    def _moved(self, conditioner: Conditioner, trails: list[Trail], texts: list[str], *, tuned: bool) -> Tensor:
        """Mean squared difference from the prior at each point, float32 (points,)."""
        return self._trajectories.moved(conditioner, trails, texts, tuned=tuned).mean(dim=1)

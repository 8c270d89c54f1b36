"""How far the model has moved from the prior, along the prior's own trajectories: the drift of training.

In: the distances. Not in: the trajectories themselves (`sample.trajectories`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sample.sampler import Sampler
from ..sample.trajectories import Trajectories, Trajectory, trajectory_calls
from ..text.conditioning import Conditioner
from .prompts import Prompts
from .with_lora import check_finite

Trail = tuple[list[str], Trajectory]  # some prompts and the prior's trajectory for them


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

    def __init__(self, sampler: Sampler, conditioner: Conditioner, prompts: Prompts) -> None:
        self._trajectories, self._rows = Trajectories(sampler), sampler.batch_size
        self.named = self._made(conditioner, prompts.named)
        self._unrelated = self._made(conditioner, prompts.unrelated)
        nothing = [
            self._moved(conditioner, trails, tuned=False, empty=True) for trails in (self.named, self._unrelated)
        ]
        check_finite(torch.cat(nothing), 0)
        self.scale = nothing[0], nothing[1]

    @staticmethod
    def calls(prompts: Prompts, rows: int) -> tuple[int, int]:
        """The number of network calls to make the trajectories, and to measure once."""
        batches, (making, measuring) = -(-len(prompts.named) // rows), trajectory_calls()
        return 2 * batches * (making + measuring), 3 * batches * measuring

    @torch.no_grad()
    def drifts(self, strength: float, conditioner: Conditioner) -> Drifts:
        """The drifts of the current model. InputError: at this strength its output is not finite."""
        found = Drifts(
            self._moved(conditioner, self.named, tuned=True),
            self._moved(conditioner, self.named, tuned=False),
            self._moved(conditioner, self._unrelated, tuned=False),
        )
        check_finite(torch.cat([found.subject, found.bare, found.unrelated]), strength)
        return found

    @torch.no_grad()
    def _made(self, conditioner: Conditioner, prompts: list[str]) -> list[Trail]:
        chunks = [list(range(len(prompts)))[k : k + self._rows] for k in range(0, len(prompts), self._rows)]
        texts = [[prompts[k] for k in rows] for rows in chunks]
        return [
            (read, self._trajectories.of(conditioner, read, rows)) for read, rows in zip(texts, chunks, strict=True)
        ]

    @torch.no_grad()
    def _moved(self, conditioner: Conditioner, trails: list[Trail], *, tuned: bool, empty: bool = False) -> Tensor:
        """Mean squared difference from the prior at each point, float32 (points,). `empty`: with an empty prompt."""
        read = [([""] * len(texts) if empty else texts, trajectory) for texts, trajectory in trails]
        found = [self._trajectories.moved(conditioner, trajectory, texts, tuned=tuned) for texts, trajectory in read]
        return torch.cat(found, dim=1).mean(dim=1)

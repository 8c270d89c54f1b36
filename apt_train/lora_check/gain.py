"""How much better a LoRA predicts its pictures than the model without it: the indicator's loss gap, by noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..training.indicator import OverfitIndicator


@dataclass(frozen=True)
class Gain:
    """`mean`: by how much less it errs than the prior, as a share of the prior's error, mean over noise levels.

    `error`: half of its 95% interval, from the spread over noises and pictures (ours). `levels`: by bin, clean
    first. `gamma`: the indicator of the same losses, with the published T = 1000.
    """

    mean: float
    error: float
    levels: list[float]
    gamma: list[float]

    @property
    def is_known(self) -> bool:
        """Whether it is more than chance."""
        return self.mean > self.error


def gain_of(prior: Tensor, tuned: Tensor) -> Gain | None:
    """From squared errors of epsilon on the same noises, float64 (bins, noises); None: there are none."""
    if not prior.numel():
        return None
    bins, count = prior.shape
    level = prior.mean(dim=1, keepdim=True).clamp_min(1e-12)
    relative = (prior - tuned) / level
    spread = relative.var(dim=1, correction=1) / count if count > 1 else torch.zeros(bins)
    indicator = OverfitIndicator(bins, num_timesteps=bins)  # a timestep for each
    indicator.update(torch.arange(bins), level[:, 0], tuned.mean(dim=1))
    return Gain(
        float(relative.mean()),
        1.96 * float(spread.sum().sqrt()) / bins,
        cast("list[float]", relative.mean(dim=1).tolist()),
        cast("list[float]", indicator.gamma.tolist()),
    )

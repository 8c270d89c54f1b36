"""How much better a model with a LoRA predicts its pictures than without: the indicator's loss gap, by noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..training.indicator import OverfitIndicator


@dataclass(frozen=True)
class Gain:
    """`mean`: the relative reduction of the prior's error, averaged over noise levels.

    `error`: half the width of its 95% interval, from the spread over noises and pictures (ours). `levels`: per bin,
    clean first. `gamma`: the indicator for the same losses, with the published T = 1000.
    """

    mean: float
    error: float
    levels: list[float]
    gamma: list[float]

    @property
    def is_known(self) -> bool:
        """Whether the gain exceeds chance."""
        return self.mean > self.error


def gain_of(prior: Tensor, tuned: Tensor) -> Gain | None:
    """The gain from squared errors of epsilon on the same noises, float64 (bins, noises); None: no noises."""
    if not prior.numel():
        return None
    bins, count = prior.shape
    level = prior.mean(dim=1, keepdim=True).clamp_min(1e-12)
    relative = (prior - tuned) / level
    if count > 1:
        spread = relative.var(dim=1, correction=1) / count
    else:  # not known, so the differences between levels stand in for it, which can only widen the interval
        spread = relative.var(correction=int(bins > 1)).expand(bins)
    indicator = OverfitIndicator(bins, num_timesteps=bins)  # one timestep per bin
    indicator.update(torch.arange(bins), level[:, 0], tuned.mean(dim=1))
    return Gain(
        float(relative.mean()),
        1.96 * float(spread.sum().sqrt()) / bins,
        cast("list[float]", relative.mean(dim=1).tolist()),
        cast("list[float]", indicator.gamma.tolist()),
    )

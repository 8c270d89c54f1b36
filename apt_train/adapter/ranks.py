"""T-LoRA (arXiv 2507.05964): the noisier the latent, the fewer of the LoRA's ranks are active."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankByTimestep:
    """r(t) = floor((r - r_min) (T - t) / T) + r_min, with the noise level for t / T.

    `levels`: the noise level of each timestep, float64 (num_timesteps,) in [0, 1].
    """

    rank: int
    min_rank: int
    levels: Tensor

    def at(self, timesteps: Tensor) -> Tensor:
        """The number of active ranks, int64 (N,), at int64 timesteps (N,)."""
        return self._rank_of.to(timesteps.device)[timesteps]

    @cached_property
    def _rank_of(self) -> Tensor:
        """The rank per timestep, int64 (num_timesteps,)."""
        half = 0.5 / len(self.levels)  # half a timestep, against rounding
        return ((self.rank - self.min_rank) * (1 - self.levels) + half).long() + self.min_rank

    def mask(self, timesteps: Tensor) -> Tensor:
        """1 for an active rank, otherwise 0: float32 (N, rank)."""
        columns = torch.arange(self.rank, device=timesteps.device)
        return (columns < self.at(timesteps)[:, None]).float()

"""T-LoRA (arXiv 2507.05964): the noisier the timestep, the fewer of the LoRA's ranks are active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankByTimestep:
    """r(t) = floor((r - r_min) (T - t) / T) + r_min."""

    rank: int
    min_rank: int
    num_timesteps: int

    def at(self, timesteps: Tensor) -> Tensor:
        """The number of active ranks, int64 (N,), at int64 timesteps (N,)."""
        left = self.num_timesteps - timesteps
        return (self.rank - self.min_rank) * left // self.num_timesteps + self.min_rank

    def mask(self, timesteps: Tensor) -> Tensor:
        """1 for an active rank, otherwise 0: float32 (N, rank)."""
        columns = torch.arange(self.rank, device=timesteps.device)
        return (columns < self.at(timesteps)[:, None]).float()

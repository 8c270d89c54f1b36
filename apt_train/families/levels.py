"""Noise levels divided into equal parts, as counted by the indicator's bins, T-LoRA's ranks and the plots' axes.

Each family may space its timesteps over the noise levels differently. Stable Diffusion's are even: level = t / 1000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Process


def levels_of(process: Process) -> Tensor:
    """The noise level of every timestep, float64 (num_timesteps,) in [0, 1], rising."""
    return process.level(torch.arange(process.num_timesteps)).double()


def even_levels(num_timesteps: int) -> Tensor:
    """Noise levels spaced evenly from 0: t / num_timesteps."""
    return torch.arange(num_timesteps, dtype=torch.float64) / num_timesteps


def parts_of(levels: Tensor, parts: int) -> Tensor:
    """For each timestep, which of `parts` equal parts of [0, 1] holds its noise level, int64 (num_timesteps,)."""
    half = 0.5 / len(levels)  # half a timestep: rounding may put a level on an edge just below it
    return (levels * parts + half).long().clamp(0, parts - 1)


def timestep_at(levels: Tensor, level: float) -> int:
    """The noisiest timestep whose noise level is at most `level`; 0 if there is none."""
    half = 0.5 / len(levels)
    return max(0, int(torch.searchsorted(levels, level + half, right=True)) - 1)

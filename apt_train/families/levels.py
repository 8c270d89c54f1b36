"""Noise levels cut into equal parts: what the indicator's bins, T-LoRA's ranks and the plots' axes count in.

A family may space its timesteps over the noise levels as it likes. Stable Diffusion's are even: level = t / 1000.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """What of a `Process` is needed here."""

    @property
    def num_timesteps(self) -> int: ...

    def level(self, timesteps: Tensor) -> Tensor: ...


def levels_of(process: Levels) -> Tensor:
    """The noise level of every timestep, float64 (num_timesteps,) in [0, 1], rising."""
    return process.level(torch.arange(process.num_timesteps)).double()


def even_levels(num_timesteps: int) -> Tensor:
    """The same where they are spaced evenly from 0: t / num_timesteps."""
    return torch.arange(num_timesteps, dtype=torch.float64) / num_timesteps


def parts_of(levels: Tensor, parts: int) -> Tensor:
    """Which of `parts` equal parts of [0, 1] each timestep's level lies in, int64 (num_timesteps,)."""
    half = 0.5 / len(levels)  # of a timestep: levels that lie on an edge may be rounded to below it
    return (levels * parts + half).long().clamp(0, parts - 1)


def timestep_at(levels: Tensor, level: float) -> int:
    """The noisiest timestep whose level is no higher; 0 below the first."""
    half = 0.5 / len(levels)
    return max(0, int(torch.searchsorted(levels, level + half, right=True)) - 1)

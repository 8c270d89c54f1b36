"""A run's memory in numbers: what it takes by estimate, what the device has, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from ..config import TrainConfig
from .objective import Objective


@dataclass(frozen=True)
class Memory:
    """Bytes. `weights`: what stays on the device; `adapter`: it with its gradients and the optimizer's moments.

    `step`: what else is alive at the worst moment of a step. `vae`: it and what it keeps while it encodes or decodes a
    picture between the steps; None: it does neither then, or its owner looks after that.
    """

    weights: int
    adapter: int
    step: int
    vae: int | None = None

    @property
    def in_step(self) -> int:
        return self.weights + self.adapter + self.step

    @property
    def beside_vae(self) -> int:
        return 0 if self.vae is None else self.weights + self.adapter + self.vae

    @property
    def peak(self) -> int:
        """Without what the device's own library takes."""
        return max(self.in_step, self.beside_vae)


@dataclass(frozen=True)
class Setting:
    """Of the run whose memory is estimated: what it is trained in, on pictures of which side, recomputing or not.

    `encoders_aside`: the text encoders are on the device only while they work.
    """

    config: TrainConfig
    objective: Objective
    device: torch.device
    dtype: torch.dtype
    side: int
    checkpoints: bool
    encoders_aside: bool = False


def free_bytes(device: torch.device) -> int | None:
    """Of a device's memory, for us; None: it does not say."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fits(memory: Memory, free: int) -> bool:
    """Whether the steps do, with room for what is not counted (ours).

    That is the device's own library, workspaces, and gaps between tensors. The VAE is not asked about: where it and the
    network together would be the peak, the network makes way for it (`Plan.sets_aside`).
    """
    return memory.in_step * 1.1 + 700_000_000 <= free

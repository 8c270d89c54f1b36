"""A run's memory in numbers: the estimate, what the device has free, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from ..config import TrainConfig
from .objective import Objective


@dataclass(frozen=True)
class Memory:
    """Bytes. `weights`: those that stay on the device; `adapter`: adapter, its gradients and the optimizer's moments.

    `step`: everything else alive at the peak of a step. `vae`: its weights and activations when it encodes or decodes
    a picture between steps; None: it does neither during training, or its host manages it.
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
        """Excludes what the device's own library takes."""
        return max(self.in_step, self.beside_vae)


@dataclass(frozen=True)
class Setting:
    """The setting that is estimated: precision, side of the pictures in pixels, and whether activations are recomputed.

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
    """Bytes of a device's memory available to us; None if the device does not report them."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fits(memory: Memory, free: int) -> bool:
    """Whether the steps fit, with a margin for what is not counted (ours).

    Not counted are the device's own library, workspaces, and gaps between tensors. The VAE is ignored: if it and the
    network together would be the peak, the network leaves the device for it (`Plan.sets_aside`).
    """
    return memory.in_step * 1.1 + 700_000_000 <= free

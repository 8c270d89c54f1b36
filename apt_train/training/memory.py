"""A run's memory in numbers: the estimate, what the device has free, and whether that is enough."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import psutil
import torch

from ..families.blocks_aside import spread


@dataclass(frozen=True)
class Memory:
    """Bytes. `weights`: those that stay on the device; `adapter`: adapter, its gradients and the optimizer's moments.

    `step`: everything else alive at the peak of a step. `vae`: its weights and activations when it encodes or decodes
    a picture between steps; None: it does neither during training, or its host manages it. `network`: the network's
    frozen weights, part of `weights`; `blocks`: those of each of its blocks.
    """

    weights: int
    adapter: int
    step: int
    vae: int | None = None
    network: int = 0
    blocks: tuple[int, ...] = ()

    def with_aside(self, count: int) -> Memory:
        """With so many blocks in main memory. Two of those are on the device: one works, and the next arrives."""
        aside = sorted(self.blocks[index] for index in spread(len(self.blocks), count))
        less = sum(aside[:-2])
        return replace(self, weights=self.weights - less, network=self.network - less)

    @property
    def in_step(self) -> int:
        return self.weights + self.adapter + self.step

    @property
    def beside_vae(self) -> int:
        return 0 if self.vae is None else self.weights + self.adapter + self.vae

    def peak(self, *, makes_way: bool) -> int:
        """Excludes what the device's own library takes. `makes_way`: the network leaves the device for the VAE."""
        return max(self.in_step, self.beside_vae - self.network * makes_way)


@dataclass(frozen=True)
class Savings:
    """What a run does to take less memory. It costs time, and changes no result.

    `recomputed`: parts of the network whose activations are recomputed in the backward pass. `encoders_aside`: the text
    encoders are on the device only while they work. `blocks_aside`: so are this many of the network's blocks.
    """

    recomputed: int = 0
    encoders_aside: bool = False
    blocks_aside: int = 0


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a device's memory available to us; None if the device does not report them."""
    if device.type == "cpu":
        with contextlib.suppress(OSError):  # /proc is missing
            return int(psutil.virtual_memory().available)
        return None
    if recommended := _recommended(device):
        held = torch.mps.driver_allocated_memory()
        left = min(psutil.virtual_memory().available, recommended - held)
        return int(left + held - torch.mps.current_allocated_memory())
    try:
        module = torch.get_device_module(device)
        free, _ = module.mem_get_info(device)
    except (AttributeError, RuntimeError):  # not every torch, driver or device of Intel's can tell
        return None
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def shares_main_memory(device: torch.device) -> bool:
    """Whether what leaves the device takes as much of the same memory as before; so on Apple's machines."""
    return device.type in ("cpu", "mps")


def empty_cache(device: torch.device) -> None:
    """Give back the memory that torch holds on the device without using it."""
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).empty_cache()


def keep_to_the_recommended(device: torch.device) -> None:
    """Give back what torch holds beyond what Apple's driver recommends.

    It would hold more with every new size of picture, until the machine swaps (reported).
    """
    recommended = _recommended(device)
    if recommended and torch.mps.driver_allocated_memory() > recommended:
        empty_cache(device)


def _recommended(device: torch.device) -> int:
    """The bytes that the driver of Apple's GPU recommends to take at most; 0: another device, or torch 2.4."""
    known = device.type == "mps" and hasattr(torch.mps, "recommended_max_memory")
    return torch.mps.recommended_max_memory() if known else 0


def fits(memory: Memory, free: int) -> bool:
    """Whether the steps fit, with a margin for what is not counted (ours).

    Not counted are the device's own library, workspaces, and gaps between tensors. The VAE is ignored: if it and the
    network together would be the peak, the network leaves the device for it (`Plan.sets_aside`).
    """
    return memory.in_step * 1.1 + 700_000_000 <= free


def blocks_too_many(memory: Memory, free: int) -> int:
    """The fewest blocks that must wait in main memory so that the rest fits; all of them if even that does not."""
    most = len(memory.blocks)
    return next((count for count in range(most) if fits(memory.with_aside(count), free)), most)

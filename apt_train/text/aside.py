"""Lets a text encoder wait in main memory and visit the device only for its forward and backward passes.

In: lending the weights. Not in: what is encoded, and that it is encoded again in the backward pass (`conditioning`).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from ..families.swapped import weights_swapped


def on_loan(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Inside the block the module works with copies of its weights on the device; afterwards with its own again."""
    return weights_swapped(module, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda", copy=True))


def ready_to_lend(module: nn.Module, device: torch.device) -> None:
    """Move the module to main memory; for CUDA into pinned pages, which copy to the GPU several times as fast."""
    module.to("cpu")
    if device.type != "cuda":
        return
    with contextlib.suppress(RuntimeError):  # too little memory to pin: copies will be slower
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.pin_memory()

"""Lets a text encoder wait in main memory and visit the device only for its forward and backward passes.

In: lending the weights, and recomputing the forward pass during the backward pass. Not in: what is encoded
(`conditioning`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from ..families.swapped import weights_swapped

Encode = Callable[[Tensor | None], Sequence[Tensor | None]]


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


def encoded_on_loan(
    encode: Encode, rows: Tensor | None, loan: Callable[[], AbstractContextManager[None]]
) -> Sequence[Tensor | None]:
    """`encode(rows)` on loan; a backward pass encodes again, on a loan of its own, and nothing is kept in between.

    `rows`: the tensor the gradient flows to; None: no gradient.
    """

    def lent(rows: Tensor | None) -> Sequence[Tensor | None]:
        with loan():
            return encode(rows)

    return cast("Any", checkpoint.checkpoint(lent, rows, use_reentrant=False))

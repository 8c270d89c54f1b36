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

from ..families.swapped import weights_swapped

Encode = Callable[[Tensor], Sequence[Tensor | None]]


def on_loan(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Inside the block the module works with copies of its weights on the device; afterwards with its own again."""

    def lent(tensor: Tensor) -> Tensor:
        there = tensor.detach().to(device, non_blocking=True, copy=True)
        return nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there

    return weights_swapped(module, lent)


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
    """`encode(rows)` on loan, lent again for the backward pass; nothing is kept in between.

    `rows`: the tensor the gradient flows to; None: no gradient.
    """
    if rows is not None and torch.is_grad_enabled():
        return cast("Sequence[Tensor | None]", _Recomputed.apply(rows, encode, loan))
    with loan():
        return encode(cast("Tensor", rows))


class _Recomputed(torch.autograd.Function):
    """Like gradient checkpointing, whose own backward pass would find the encoder off the device."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, encode: Encode, loan: Callable[[], Any]) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(rows)
        ctx.encode, ctx.loan = encode, loan
        with loan():
            return tuple(encode(rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        with ctx.loan(), torch.enable_grad():
            again = rows.detach().requires_grad_()
            pairs = [pair for pair in zip(ctx.encode(again), gradients, strict=True) if pair[0] is not None]
            outputs, wanted = zip(*pairs, strict=True)
            found = cast("tuple[Tensor, ...]", torch.autograd.grad(outputs, again, wanted))
        return found[0], None, None

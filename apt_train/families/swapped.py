"""Modules that are given back as they were: weights replaced, lent, or in another layout, for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

LEFT_UNDER_WAY = ("cuda",)  # kinds of devices whose own order of work makes it safe to go on before a copy is there


@contextlib.contextmanager
def weights_swapped(module: nn.Module, replacement: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Inside the block parameters and buffers have what `replacement` returns for each; afterwards their own again."""

    def made(tensor: Tensor) -> Tensor:
        new = replacement(tensor.detach())
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

    kept = [(store, dict(store)) for store in _stores(module)]
    try:
        for store, tensors in kept:
            store.update({name: made(tensor) for name, tensor in tensors.items() if tensor is not None})
        yield
    finally:
        for store, tensors in kept:
            store.clear()
            store.update(tensors)


@contextlib.contextmanager
def in_channels_last(module: nn.Module) -> Generator[None]:
    """Inside the block convolutions' weights have the memory layout `channels_last`; afterwards their own strides."""
    tensors = [(store, name, tensor) for store in _stores(module) for name, tensor in store.items()]
    kept = [(store, name, one.stride()) for store, name, one in tensors if one is not None and one.dim() == 4]
    try:
        for store, name, _ in kept:
            store[name].data = store[name].data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for store, name, stride in kept:  # by name: what has moved meanwhile may be another tensor
            data = store[name].data
            store[name].data = data.new_empty_strided(data.shape, stride).copy_(data)


@contextlib.contextmanager
def lent(modules: Iterable[nn.Module]) -> Generator[None]:
    """Inside the block the modules may be cast, moved, frozen and switched; their owner then has them back untouched.

    Weights share their memory meanwhile, but those made in inference mode are copied, because autograd refuses them.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            for part in cast("Iterable[nn.Module]", module.modules()):
                stack.callback(setattr, part, "training", part.training)
            stack.enter_context(
                weights_swapped(module, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
            )
        yield


def sent(tensor: Tensor, device: torch.device, *, copy: bool = False) -> Tensor:
    """A tensor of main memory on the device. CUDA would wait for all work before the copy, unless it is told not to."""
    return tensor.to(device, non_blocking=device.type in LEFT_UNDER_WAY, copy=copy)


def on_loan(module: nn.Module, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Inside the block the module works with copies of its weights on the device; afterwards with its own again."""
    return weights_swapped(module, lambda tensor: sent(tensor, device, copy=True))


def pin(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Keep tensors of main memory in pinned pages for CUDA, which copy to the GPU several times as fast."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # too little memory to pin: copies will be slower
            for tensor in tensors:
                tensor.data = tensor.data.pin_memory()


def _stores(module: nn.Module) -> list[Any]:
    """The dictionaries in which the module and its parts keep their parameters and buffers by name."""
    parts = cast("Iterable[Any]", module.modules())
    return [store for part in parts for store in (part._parameters, part._buffers)]

"""A module's weights, replaced for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any, cast

from torch import Tensor, nn


@contextlib.contextmanager
def weights_swapped(module: nn.Module, replacement: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Inside the block parameters and buffers have what `replacement` returns for each; afterwards their own again."""

    def made(tensor: Tensor) -> Tensor:
        new = replacement(tensor.detach())
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

    parts = cast("Iterable[Any]", module.modules())
    stores: list[Any] = [store for part in parts for store in (part._parameters, part._buffers)]
    kept = [(store, dict(store)) for store in stores]
    try:
        for store, tensors in kept:
            store.update({name: made(tensor) for name, tensor in tensors.items() if tensor is not None})
        yield
    finally:
        for store, tensors in kept:
            store.clear()
            store.update(tensors)

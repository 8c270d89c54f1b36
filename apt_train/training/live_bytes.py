"""Counts the bytes a computation keeps alive by running it on torch's meta device, where tensors have no data.

In: the counting, what the meta device lacks for it, making modules weightless. Not in: what is run (`estimate`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..families.swapped import weights_swapped
from .meta_results import META, MetaResults, storage_key


def weight_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors created in the block and still alive: `now` and at the `peak`.

    A storage counts once, however many views it has, until it is freed. Storages of `modules` do not count. Temporaries
    inside an operation are not seen: they belong to its kernel.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self._results = MetaResults()
        self.now = self.peak = 0
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._bytes = {storage_key(tensor): 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _read_back(func, args, kwargs or {})
        result = self._results(func, args, kwargs or {}) if result is None else result
        for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def leave_out(self, tensor: Tensor) -> None:
        """Stop counting this tensor."""
        self.now -= self._bytes[storage_key(tensor)]
        self._bytes[storage_key(tensor)] = 0

    def _see(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if key not in self._bytes:
            self._bytes[key] = tensor.untyped_storage().nbytes()
            self.now += self._bytes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(tensor.untyped_storage(), self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


def _read_back(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Stand-ins for values the trainer reads off the device: `all is finite` is True, losses are 0."""
    if not (args and isinstance(args[0], Tensor) and args[0].is_meta):
        return None
    if func is torch.ops.aten._local_scalar_dense.default:
        return True
    if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    return None


class _FusedAttention(torch.autograd.Function):
    """Saves for the backward pass what flash and memory-efficient kernels save; its values are zeros."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        count, heads, length, width = query.shape
        output = query.new_zeros(count, length, heads, width).transpose(1, 2)  # CUDA's memory layout
        logsumexp = query.new_zeros(count, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


@contextlib.contextmanager
def as_on_a_gpu(*, only_meta: bool = False, fused: bool = True) -> Generator[None]:
    """Inside the block torch attends as fused kernels do, and can recompute activations on the meta device, too.

    `only_meta`: only meta tensors are attended to so. `fused`: whether the GPU has such kernels with gradients, which
    Apple's has not.
    """
    real, known = F.scaled_dot_product_attention, cast("dict[str, Any]", vars(torch))

    def stand_in(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Any:
        if not fused or (only_meta and not query.is_meta):
            return real(query, key, value, *more, **named)
        return cast("Tensor", _FusedAttention.apply(query, key, value))

    F.scaled_dot_product_attention = stand_in
    known["meta"] = META  # before version 2.6 checkpointing looks every device up there
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
        known.pop("meta", None)


@contextlib.contextmanager
def gradients_left_out(live: LiveBytes, parameters: list[nn.Parameter]) -> Generator[None]:
    """Leave the trained parameters' gradients out of this count: `Memory.adapter` has them. Clears them afterwards."""

    def leave_out(parameter: Any) -> None:
        live.leave_out(parameter.grad)

    with contextlib.ExitStack() as stack:
        for parameter in parameters:
            stack.callback(setattr, parameter, "grad", None)
            stack.callback(cast("Any", parameter.register_post_accumulate_grad_hook(leave_out)).remove)
        yield


def on_meta(module: nn.Module, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager[None]:
    """Inside the block the module's weights are meta tensors, floats in `dtype`; afterwards they are restored."""
    return weights_swapped(
        module,
        lambda tensor: torch.empty_like(tensor, device=META, dtype=dtype if tensor.is_floating_point() else None),
    )

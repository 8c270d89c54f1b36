"""How many bytes a computation keeps alive, found by running it on torch's meta device, where tensors have no content.

In: counting, a stand-in for fused attention, modules made weightless for a while. Not in: what is run (`estimate`).
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
from torch.utils.hooks import RemovableHandle

META = torch.device("meta")


def weight_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


class LiveBytes(TorchDispatchMode):
    """Inside the block: the bytes of all tensors made there and still alive, `now` and at the `peak`.

    A storage counts once, however many views it has, until it is freed; those of `modules` do not count. Temporaries
    inside an operation stay unseen: they are the kernel's own.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.now = self.peak = 0
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._bytes = {storage_key(tensor): 0 for tensor in known}
        self._results = Results()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _read_back(func, args, kwargs or {})
        result = self._results.of(func, args, kwargs or {}) if result is None else result
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count this one any more."""
        self.now -= self._bytes[storage_key(tensor)]
        self._bytes[storage_key(tensor)] = 0

    def _see(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if key not in self._bytes:
            self._bytes[key] = _bytes(tensor)
            self.now += self._bytes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(tensor.untyped_storage(), self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


Sizes = tuple[Any, Any, torch.dtype]  # of a tensor: its size, stride and type


class Results:
    """What operations gave, by what they were given, so that equal layers are computed once.

    Most operations on meta tensors are long functions in Python; a result without content is its sizes alone. Left to
    torch every time: what gives back or changes something it was given, and what is given content.
    """

    def __init__(self) -> None:
        self._known: dict[Any, list[Sizes] | None] = {}  # None: has to be computed every time

    def of(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            key = func, _described(args), _described(kwargs)
            known = self._known.get(key, [])
        except TypeError:  # not to be described, or not to be looked up
            return func(*args, **kwargs)
        if known:
            made = tuple(map(_made, known))
            return made[0] if len(made) == 1 else made
        result = func(*args, **kwargs)
        if known is not None:
            self._known[key] = _sizes_of_new(func, result, tree_leaves((args, kwargs)))
        return result


def _described(value: Any) -> Any:
    """What a result's sizes and type depend on. TypeError: there may be more to it."""
    if isinstance(value, Tensor):
        if not value.is_meta or value.layout != torch.strided:  # a number in a tensor counts less in a result's type
            raise TypeError
        return value.shape, value.stride(), value.storage_offset(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, cast("Iterable[Any]", value)))
    if isinstance(value, dict):
        return tuple((name, _described(item)) for name, item in cast("dict[str, Any]", value).items())
    return type(value), value  # 1, 1.0 and True are the same key, and not the same type


def _sizes_of_new(func: Any, result: Any, given: list[Any]) -> list[Sizes] | None:
    """None where not all of them are new, apart from each other and no larger than they look."""
    found: list[Any] = [*cast("tuple[Any, ...]", result)] if isinstance(result, tuple) else [result]
    if func._schema.is_mutable or not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in found):
        return None
    sizes: list[Sizes] = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in found]
    ours = {storage_key(tensor) for tensor in found}
    theirs = {storage_key(tensor) for tensor in given if isinstance(tensor, Tensor)}
    are_whole = all(_bytes(tensor) == _bytes(_made(size)) for tensor, size in zip(found, sizes, strict=True))
    return sizes if are_whole and len(ours) == len(found) and not ours & theirs else None


def _made(sizes: Sizes) -> Tensor:
    size, stride, dtype = sizes
    return torch.empty_strided(size, stride, dtype=dtype, device=META)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def storage_key(tensor: Tensor) -> int:
    return cast("Any", tensor.untyped_storage())._cdata  # on meta there is no address of data to tell storages apart by


def _read_back(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the trainer reads off the device, where a meta tensor has nothing to read: `all is finite`, losses of 0."""
    if not (args and isinstance(args[0], Tensor) and args[0].is_meta):
        return None
    if func is torch.ops.aten._local_scalar_dense.default:
        return True
    if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    return None


class _FusedAttention(torch.autograd.Function):
    """Keeps for the backward pass what flash and memory-efficient kernels keep; the values are zeros."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        count, heads, length, width = query.shape
        output = query.new_zeros(count, length, heads, width).transpose(1, 2)  # laid out as on CUDA
        logsumexp = query.new_zeros(count, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


@contextlib.contextmanager
def fused_attention(*, only_meta: bool = False) -> Generator[None]:
    """Inside the block the stand-in runs in the place of torch's attention; `only_meta`: on tensors without content."""
    real = F.scaled_dot_product_attention

    def stand_in(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Any:
        if only_meta and not query.is_meta:
            return real(query, key, value, *more, **named)
        return cast("Tensor", _FusedAttention.apply(query, key, value))

    F.scaled_dot_product_attention = stand_in
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


@contextlib.contextmanager
def gradients_left_out(live: LiveBytes, parameters: list[nn.Parameter]) -> Generator[None]:
    """Gradients of the trained parameters count with these, not among the activations; none is left afterwards."""

    def leave_out(parameter: Any) -> None:
        live.leave_out(parameter.grad)

    handles: list[RemovableHandle] = [p.register_post_accumulate_grad_hook(leave_out) for p in parameters]
    try:
        yield
    finally:
        for handle, parameter in zip(handles, parameters, strict=True):
            handle.remove()
            parameter.grad = None


@contextlib.contextmanager
def on_meta(module: nn.Module, dtype: torch.dtype | None = None) -> Generator[None]:
    """Inside the block its weights have sizes and no content, floats in `dtype`; then they are as they were."""
    parts = cast("Iterable[Any]", module.modules())
    stores: list[Any] = [store for part in parts for store in (part._parameters, part._buffers)]
    kept = [(store, dict(store)) for store in stores]
    try:
        for store, tensors in kept:
            store.update({name: _weightless(tensor, dtype) for name, tensor in tensors.items() if tensor is not None})
        yield
    finally:
        for store, tensors in kept:
            store.clear()
            store.update(tensors)


def _weightless(tensor: Any, dtype: torch.dtype | None) -> Any:
    made = torch.empty_like(tensor, device=META, dtype=dtype if tensor.is_floating_point() else None)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

"""Remembers what operations return on meta tensors, because the blocks of a network repeat the same operations.

torch computes most of these results in Python, in a few tenths of a millisecond each. An empty tensor of a known shape
takes a hundredth of that. In: the cache of results. Not in: counting them (`live_bytes`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_Made = tuple[type | None, list[tuple[Any, ...] | None]]  # tuple, list or None; shape, strides and type of each tensor


class MetaResults:
    """Calls operations. One that makes new tensors from meta tensors is called only once per kind of input."""

    def __init__(self) -> None:
        self._known: dict[Any, _Made] = {}
        self._called: set[Any] = set()  # views and in-place operations: they share a storage, and are fast

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in self._called:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
            known = self._known.get(key)
        except TypeError:  # an argument with content, or one that cannot be a key
            return func(*args, **kwargs)
        return self._first(key, func, args, kwargs) if known is None else _make(known)

    def _first(self, key: Any, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        made = _made(result, args, kwargs)
        if made is None:
            self._called.add(func)
        else:
            self._known[key] = made
        return result


def _key(value: Any) -> Any:
    """Equal keys have equal results: a tensor's shape, strides and type. TypeError: the tensor has content."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, cast("list[Any]", value)))
    return value.__class__, value  # 1, 1.0 and True are equal, but their results differ in type


def _made(result: Any, args: Any, kwargs: Any) -> _Made | None:
    """How to make such a result. None: not all of it is new tensors, with storages of their own and without gaps."""
    kind: type | None = next((kind for kind in (tuple, list) if isinstance(result, kind)), None)
    outputs: list[Any] = [result] if kind is None else list(cast("Iterable[Any]", result))
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    tensors = [output for output in outputs if output is not None]
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return None
    stores = {storage_key(tensor) for tensor in (*tensors, *given)}
    if len(stores) < len(tensors) + len({storage_key(tensor) for tensor in given}):
        return None
    shapes = [None if output is None else (output.shape, output.stride(), output.dtype) for output in outputs]
    made: _Made = (kind, shapes)
    stand_ins = [tensor for tensor in tree_leaves(_make(made)) if tensor is not None]
    return made if list(map(_bytes, stand_ins)) == list(map(_bytes, tensors)) else None


def _make(made: _Made) -> Any:
    kind, shapes = made
    tensors = [None if one is None else torch.empty_strided(*one[:2], dtype=one[2], device=META) for one in shapes]
    return tensors[0] if kind is None else kind(tensors)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def storage_key(tensor: Tensor) -> int:
    return cast("Any", tensor.untyped_storage())._cdata  # meta storages have no data pointer to identify them by

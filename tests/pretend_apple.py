"""Pretends, on top of `pretend_device`, to be Apple's GPU: what torch's MPS backend lacks is refused there as well.

    with pretend_apple() as device: train(..., device=device.device)

Refused are number formats, operations without a kernel in this version of torch, and copies that nothing waits for,
which arrive damaged there. In: the device. Not in: tests, its memory, what its kernels compute.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretend_device import NAME, Device, OnDevice, pretend_device

UNKNOWN = {torch.float64, torch.complex128} | {getattr(torch, name) for name in dir(torch) if "float8_e" in name}
OPERATIONS = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"


class _Lacking(TorchDispatchMode):
    """Sees every call before the device does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if (to is not None and torch.device(to).type == NAME) or _any_there((args, kwargs)):
            if func.name().removeprefix("aten::") in without_kernel():
                raise NotImplementedError(f"{func.name()} is not currently implemented for the MPS device")
            if kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and True in args[2:]):
                raise RuntimeError("nothing waits for this copy, which arrives damaged on Apple's GPU")
        result = func(*args, **kwargs)
        if found := [one.dtype for one in tree_leaves(result) if isinstance(one, OnDevice) and one.dtype in UNKNOWN]:
            raise TypeError(f"Trying to convert {found[0]} to the MPS backend but it does not have support for it")
        return result


def _any_there(values: Any) -> bool:
    return any(isinstance(one, OnDevice) for one in tree_leaves(values))


@cache
def without_kernel() -> set[str]:
    """Operations that have kernels in this torch, but none for MPS, by their names in `torch.ops.aten`.

    Until torch 2.11 two of them have one in Python, which is not listed there.
    """
    entries = re.split(r"(?m)^- func: ", OPERATIONS.read_text(encoding="utf-8"))[1:]
    known = {entry.partition("(")[0]: entry for entry in entries}
    lacking = {name for name, entry in known.items() if not _runs(entry, known)}
    return lacking - {"native_group_norm", "native_group_norm_backward"}


def _runs(entry: str, known: dict[str, str]) -> bool:
    if delegate := re.search(r"structured_delegate: (\S+)", entry):
        return _runs(known[delegate[1]], known)
    kernels = re.findall(r"(?m)^    (\w[\w, ]*): ", entry)
    return not kernels or any("MPS" in keys or "Composite" in keys for keys in kernels)


@contextlib.contextmanager
def pretend_apple() -> Iterator[Device]:
    """Inside the block the device is there."""
    with pretend_device() as device, _Lacking():
        yield device

"""Hands over the machine: the host's models leave before training, ours afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import traceback
from collections.abc import Iterator

import comfy.model_management
import torch


@contextlib.contextmanager
def training_room() -> Iterator[None]:
    """Inside the block autograd works and the host's models are off the device; afterwards ours are too.

    The host runs nodes in inference mode, whose tensors cannot be trained. With `--highvram` and `--gpu-only` it keeps
    its models on the device.
    """
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        with torch.inference_mode(False):
            yield
    except BaseException as error:
        _clear_frames(error)
        raise
    finally:
        gc.collect()
        _trim_heap()
        comfy.model_management.soft_empty_cache()
        _unpin()


def _trim_heap() -> None:
    """Return freed memory to the system: glibc keeps it in its arenas, and a host runs for days."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library or system
        ctypes.CDLL(None).malloc_trim(0)


def _unpin() -> None:
    """Return the pinned memory that torch keeps once weights have waited in it: no other program gets at it."""
    with contextlib.suppress(AttributeError):  # torch 2.4, or one without CUDA
        torch._C._host_emptyCache()


def _clear_frames(error: BaseException | None) -> None:
    """Clear an exception's frames, which would keep the model alive until the host has reported it."""
    seen: set[int] = set()  # causes and contexts may form a cycle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

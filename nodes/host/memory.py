"""Handing the machine over: the host's models leave before training, ours are gone after it."""

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
    """Inside the block autograd works and the device is free of the host's models; after it ours have left.

    The host runs nodes under inference mode, whose tensors cannot be trained.
    """
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        with torch.inference_mode(False):
            yield
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        gc.collect()
        _give_back()
        comfy.model_management.soft_empty_cache()


def _give_back() -> None:
    """Return what was freed to the system: glibc keeps it scattered over its arenas, and a host runs for days."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an exception has left: they would keep the model until the host has reported it."""
    seen: set[int] = set()  # causes and contexts may lead back to where they began
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

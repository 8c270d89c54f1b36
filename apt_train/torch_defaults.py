"""Torch as it is by default, whatever the caller of the public functions has switched."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch


@contextlib.contextmanager
def torch_defaults() -> Generator[None]:
    """Inside the block gradients can be computed, and new tensors are float32 and on the CPU, unless they are told.

    Under the caller's `no_grad` a run would fail at its first step, a default device would mix devices, and a default
    dtype would change the draws.
    """
    is_cpu = torch.get_default_device().type == "cpu"
    on_cpu = contextlib.nullcontext() if is_cpu else torch.device("cpu")  # a mode that slows every call
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), on_cpu:
            yield
    finally:
        torch.set_default_dtype(before)

"""Torch as it is by default, whatever the caller of the public functions has switched."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

_AUTOCASTS = ("cpu", "cuda", "mps", "xpu")


@contextlib.contextmanager
def torch_defaults() -> Generator[None]:
    """Inside the block gradients can be computed, and new tensors are float32 and on the CPU, unless they are told.

    Under the caller's `no_grad` a run would fail at its first step, a default device would mix devices, and a default
    dtype or autocast would change the weights.
    """
    # torch 2.4 cannot be asked for its default device once a program has reset it.
    before, is_cpu = torch.get_default_dtype(), torch.empty(0).device.type == "cpu"
    torch.set_default_dtype(torch.float32)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        if torch.is_inference_mode_enabled():  # not otherwise: leaving it also switches backward's threads on
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if not is_cpu:  # a mode that slows every call
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.amp.is_autocast_available, _AUTOCASTS):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield

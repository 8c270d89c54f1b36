"""Torch as it is by default, whatever the caller of the public functions has switched."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator

import torch
import torch.nn.functional as F

_AUTOCASTS = ("cpu", "cuda", "mps", "xpu")
_IN_FLOAT16 = "allow_fp16_accumulation"
_ATTENTION = "scaled_dot_product_attention"


@contextlib.contextmanager
def torch_defaults() -> Generator[None]:
    """Inside the block gradients can be computed, and new tensors are float32 and on the CPU, unless they are told.

    Under the caller's `no_grad` a run would fail at its first step, a default device would mix devices, and a default
    dtype or autocast would change the weights. So would products summed in float16, which ComfyUI's `--fast` asks of a
    GPU: gradients are too large for it. So would products of float32 in fewer bits, and an attention that another
    program has put in place of torch's: SageAttention has no gradients.
    """
    # torch 2.4 cannot be asked for its default device once a program has reset it.
    before, is_cpu = torch.get_default_dtype(), torch.empty(0).device.type == "cpu"
    torch.set_default_dtype(torch.float32)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        products = torch.backends.cuda.matmul
        if getattr(products, _IN_FLOAT16, False):  # torch 2.4 has no such switch
            stack.callback(setattr, products, _IN_FLOAT16, True)
            setattr(products, _IN_FLOAT16, False)
        with contextlib.suppress(RuntimeError):  # torch refuses to name what its newer interface has set
            if (precision := torch.get_float32_matmul_precision()) != "highest":
                stack.callback(torch.set_float32_matmul_precision, precision)
                torch.set_float32_matmul_precision("highest")
        attention = getattr(F, _ATTENTION)
        if not (inspect.isbuiltin(attention) or attention.__module__.startswith(f"{__package__}.")):
            stack.callback(setattr, F, _ATTENTION, attention)
            setattr(F, _ATTENTION, torch.ops.aten.scaled_dot_product_attention)
        if torch.is_inference_mode_enabled():  # not otherwise: leaving it also switches backward's threads on
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if not is_cpu:  # a mode that slows every call
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.amp.is_autocast_available, _AUTOCASTS):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield

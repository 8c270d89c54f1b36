"""Resolves the setting `precision` to a dtype, and knows which dtypes a device has. Casting happens elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of base weights and passes. InputError: fp16 on the CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # By capability, because torch reports bf16 as supported even if it is only emulated.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is fp16 on the CPU, which trains too slowly and overflows: choose bf16 or fp32.")
    return DTYPES[precision]


def holds(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device knows this dtype: Apple's GPUs have no float64 and no float8, and some of Intel's no float64."""
    try:
        torch.zeros(1).to(dtype).to(device).float()
    except (TypeError, RuntimeError):
        return False
    return True


def in_float64(tensor: Tensor) -> Tensor:
    """The values in float64, on the CPU if their device has none."""
    return (tensor if holds(tensor.device, torch.float64) else tensor.cpu()).double()

"""Resolves the setting `precision` to a dtype for a device. Casting happens elsewhere."""

from __future__ import annotations

import torch

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

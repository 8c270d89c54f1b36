"""What the base weights and passes are computed in.

In: the setting `precision` on a device. Not in: casting anything.
"""

from __future__ import annotations

import torch

from ..errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the base weights and passes are in. InputError: fp16 on the CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # By capability: torch calls bf16 supported also where it is only emulated.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is fp16 on the CPU, which trains too slowly and overflows: choose bf16 or fp32.")
    return DTYPES[precision]

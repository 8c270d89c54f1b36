"""Resolves the setting `precision` to a dtype, and knows which dtypes a device has. Casting happens elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def check_device(device: torch.device, dtype: torch.dtype, storage: str) -> None:
    """InputError: this torch cannot train on the device in this dtype with the base weights in this `base_storage`."""
    if device.type in ("cpu", "cuda"):
        return
    if not holds(device, dtype) or (dtype == torch.float16 and not _scales_losses(device)):
        name = next(name for name, known in DTYPES.items() if known == dtype)
        raise InputError(f"precision is {name}, in which torch cannot train on this device: choose another one.")
    if storage == "fp8" and not holds(device, torch.float8_e4m3fn):
        raise InputError("base_storage is fp8, which this device does not know: choose int8, which takes as little.")


def _scales_losses(device: torch.device) -> bool:
    """Whether a step can be taken on a scaled loss, for which an older torch needs float64 or lacks a kernel."""
    weight, scaler = nn.Parameter(torch.zeros(1, device=device)), torch.amp.GradScaler(device.type)
    try:
        scaler.scale(weight.sum()).backward()
        scaler.step(torch.optim.SGD([weight]))
        scaler.update()
    except (TypeError, RuntimeError):
        return False
    return True

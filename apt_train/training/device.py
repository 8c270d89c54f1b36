"""The device of a run: which one it is, and what cannot be trained there."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import nn

from ..config import TrainConfig
from ..errors import InputError
from ..families.precision import DTYPES, holds


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device; None: a GPU of NVIDIA, AMD or Apple if there is one, else the CPU. InputError: it cannot be used."""
    name = _usual_device() if device is None else device
    try:
        resolved = torch.device(name)
        torch.zeros(1, device=resolved).cpu()  # a device that cannot be read back (meta) cannot train
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        if "out of memory" in str(error) and "MPS" not in str(error):  # a virtual Mac's never has any, see below
            raise InputError(
                f"The device {name} has no memory left: close what else uses it, or choose cpu."
            ) from error
        raise InputError(f"The device {name} cannot be used here: choose cpu, or a device that torch finds.") from error
    return resolved


def _usual_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    with contextlib.suppress(RuntimeError):  # a virtual Mac has such a GPU, but no memory on it (reported)
        if torch.backends.mps.is_available():
            torch.zeros(1, device="mps")
            return "mps"
    return "cpu"


def refuse_ranks() -> None:
    """InputError: several ranks were launched. Each would train the whole run in the same folder on the same device."""
    launchers = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torch's, and those of MPI
    ranks = next((count for name in launchers if (count := os.environ.get(name, "")) not in ("", "1")), None)
    if ranks is not None:
        raise InputError(f"This was launched with {ranks} processes, but trains in one: start it without a launcher.")


def check_device(device: torch.device, dtype: torch.dtype, config: TrainConfig) -> None:
    """InputError: these settings cannot be trained on the device in this dtype, or only wrongly."""
    if device.type in ("cpu", "cuda"):
        return
    if not holds(device, dtype) or (dtype == torch.float16 and not _scales_losses(device)):
        name = next(name for name, known in DTYPES.items() if known == dtype)
        raise InputError(f"precision is {name}, in which torch cannot train on this device: choose another one.")
    if config.base_storage == "fp8" and not holds(device, torch.float8_e4m3fn):
        raise InputError("base_storage is fp8, which this device does not know: choose int8, which takes as little.")
    if device.type == "mps":
        _check_apple(config)


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


def _check_apple(config: TrainConfig) -> None:
    """InputError: what torch accepts on Apple's GPU, but computes wrongly there without saying so."""
    recomputes = config.memory == "auto" or config.gradient_checkpointing is not False
    if config.channels_last:
        raise InputError("channels_last is on, with which torch may compute wrongly on Apple's GPU: switch it off.")
    if config.adapter.dropout and recomputes:
        raise InputError(
            "dropout is on, which Apple's GPU draws anew where it recomputes activations: set it to 0, or "
            "gradient_checkpointing to false and memory to fixed."
        )

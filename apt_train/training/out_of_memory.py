"""Running out of memory: recognised, reported in words, and answered by a leaner mode.

Not in: estimating what a run will need (`estimate`), memory that spills without an error (`pace`).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator

import torch

from ..errors import InputError
from .memory import empty_cache, shares_main_memory
from .notes import BLOCKS_ASIDE, ENCODERS_ASIDE
from .running import Run

# Errors of Linux, Windows, accelerators, cuBLAS, cuDNN since its version 9, Intel's runtime.
_ALLOCATION_FAILED = (
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED",
    "OUT_OF_DEVICE_MEMORY",
)  # fmt: skip
STEPPED_DOWN = "Out of memory: activations are recomputed from here on, which takes more time and less memory."


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILED)


def leaner_mode(run: Run) -> Callable[[Run], str] | None:
    """What makes the run take less memory, and returns a notice for the user; first what costs the least time.

    None: no such mode is left, or none may be taken. Once parameters have begun to move, the step cannot be repeated.
    """
    if run.config.memory != "auto" or run.updating:
        return None
    if run.recomputed < run.components.network.checkpoint_parts(run.components.unet):
        return _recompute
    if shares_main_memory(run.device):
        return None
    conditioner = run.inputs.conditioner
    if conditioner.identifier is not None and not conditioner.is_aside:
        return _set_encoders_aside
    return _set_blocks_aside if run.blocks.are_left else None


def _recompute(run: Run) -> str:
    network = run.components.network
    run.recomputed = network.checkpoint_parts(run.components.unet)
    network.checkpoint(run.components.unet, run.recomputed)
    run.training_step.save_memory = True
    return STEPPED_DOWN


def _set_encoders_aside(run: Run) -> str:
    run.inputs.conditioner.put_aside()
    return ENCODERS_ASIDE


def _set_blocks_aside(run: Run) -> str:
    run.blocks.send(len(run.components.network.blocks(run.components.unet)))
    return BLOCKS_ASIDE


def forget(run: Run) -> None:
    """Discard what a failed step left, so that it can be repeated. Call it outside the block that held its tensors."""
    run.optimizer.zero_grad(set_to_none=True)
    run.indicator.discard()
    fresh = torch.amp.GradScaler(run.device.type, enabled=run.scaler.is_enabled())
    fresh.load_state_dict(run.scaler.state_dict())
    run.scaler = fresh  # it has not unscaled this step's gradients yet: a scaler refuses to do that twice
    gc.collect()
    empty_cache(run.device)


@contextlib.contextmanager
def memory_in_words(refusal: InputError | None = None) -> Generator[None]:
    """Turn running out of memory into this InputError, because the user can act on it. None: a run's own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise refusal or InputError(_OUT_OF_MEMORY) from error


_OUT_OF_MEMORY = (
    "Out of memory: set base_storage to int8 and memory to auto, lower resolution or batch_size, or set "
    "identifier_mode to word."
)

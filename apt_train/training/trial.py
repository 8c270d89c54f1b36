"""How long the steps of a run will take, from passes that are tried before the first of them and leave no trace (ours).

In: trying and timing. Not in: the passes (`update`), the time of samples and of the drift, whether steps become slow
later (`room`).
"""

from __future__ import annotations

import time

import torch

from .running import Run
from .update import passes


def seconds_left(run: Run) -> float | None:
    """Of all steps that the run still has, without samples and drift.

    None: it is not tried, as on a CPU a trial takes as long as two steps, or a small model is done soon; or it failed,
    which a step will say better.
    """
    if run.device.type == "cpu" or run.plan.memory is None:
        return None
    each = tried(run)
    return None if each is None else each * (run.config.steps - run.steps_done)


def tried(run: Run) -> float | None:
    """Seconds of one step's passes. The first ones load what the device computes with, so the second ones count."""
    try:
        _timed(run)
        return _timed(run)
    except (RuntimeError, MemoryError):
        return None
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        run.indicator.discard()


def _timed(run: Run) -> float:
    began = time.perf_counter()
    passes(run)
    torch.zeros(1, device=run.device).cpu()  # read back: the device has done all that was asked of it
    return time.perf_counter() - began

"""Predicts how long a run's steps will take, by trying two before the first; the trial leaves no trace (ours).

In: trying and timing. Not in: the passes (`update`), the time for samples and drift, steps that become slow later
(`room`).
"""

from __future__ import annotations

import time

import torch

from .running import Run
from .update import passes


def seconds_left(run: Run) -> float | None:
    """Predicted seconds for all remaining steps, without samples and drift.

    None if not tried: on a CPU the trial costs as much as two steps, and a small model finishes soon anyway. Also None
    if the trial failed; the real step will give a better error.
    """
    if run.device.type == "cpu" or run.plan.memory is None:
        return None
    each = tried(run)
    return None if each is None else each * (run.config.steps - run.steps_done)


def tried(run: Run) -> float | None:
    """Seconds that one step's passes take. The first run warms the device up; the second is timed."""
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
    torch.zeros(1, device=run.device).cpu()  # a read-back waits until the device has finished
    return time.perf_counter() - began

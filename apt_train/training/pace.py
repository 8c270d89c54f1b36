"""How long steps take: predicted by trying two before the first, which leaves no trace, and watched afterwards (ours).

In: trying and timing. Not in: the passes (`update`), the time for samples and drift.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

import torch

from .running import Run
from .update import dry_passes

SPILLS = (
    "The steps take ten times as long as the first ones: the GPU's memory may spill into main memory. Lower "
    "resolution or batch_size, or set gradient_checkpointing to true."
)
_FEW = 5  # steps per pace measurement


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
    dry_passes(run)
    torch.zeros(1, device=run.device).cpu()  # a read-back waits until the device has finished
    return time.perf_counter() - began


class Pace:
    """Reports once if steps become ten times slower (ours): some drivers spill into main memory without an error."""

    def __init__(self, device: torch.device) -> None:
        self._watches = device.type != "cpu"
        self._first: list[float] = []  # the warm-up, and a few after it
        self._recent: deque[float] = deque(maxlen=_FEW)

    def is_news(self, seconds: float) -> bool:
        """Takes the duration of each finished step; the first one is ignored as warm-up."""
        if not self._watches:
            return False
        (self._first if len(self._first) <= _FEW else self._recent).append(seconds)
        slow = len(self._recent) == _FEW and statistics.median(self._recent) > 10 * statistics.median(self._first[1:])
        self._watches = not slow
        return slow

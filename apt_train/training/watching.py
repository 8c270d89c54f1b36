"""What a run measures as it goes: the drift from the prior; and catching up on what an interrupted run still lacks.

In: when drift is due, training on if it fails. Not in: measuring (`sample.drift`), the previews (`previewing`).
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ..events import Callback, NoticeEvent
from ..names import LOG
from ..run.log import read_log
from .interruptible import attempted
from .outcome import Outcome
from .previewing import has_previews, try_previews


def catch_up(outcome: Outcome, emit: Callback) -> None:
    """Measure and draw what the resumed step still lacks because the run was interrupted after its snapshot."""
    run, folder, output = outcome.run, outcome.folder, outcome.run.config.output
    if folder is None or not run.steps_done:
        return
    lines = read_log(folder.path / LOG, run.config.apt.bins).lines
    if _lacks_drift(lines, run.steps_done, output.snapshot_every):
        drift = try_drift(outcome, emit)
        if drift is not None:
            folder.add_drift(run.steps_done, drift)
            outcome.measured.append({"step": run.steps_done, **drift})
    if is_due(run.steps_done, output.preview_every) and not has_previews(outcome, folder.previews):
        try_previews(outcome, emit)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps is due after this step; 0: never."""
    return every > 0 and step % every == 0


def _lacks_drift(lines: list[dict[str, Any]], step: int, every: int) -> bool:
    """Whether the last due drift is the only one missing.

    If an earlier one is missing too, drift was off, could not be measured, or was dropped with its old prompts.
    """
    missing = [line["step"] for line in lines if is_due(line["step"], every) and not line.get("drift")]
    return missing == [step]


def try_drift(outcome: Outcome, emit: Callback) -> dict[str, float] | None:
    """How far the model has moved from the prior; None if that is not measured, or has failed."""
    run, watch = outcome.run, outcome.run.drift
    if watch is None or outcome.drift_failed:
        return None
    drift, reason = attempted(run, emit, "drift", watch.calls, lambda _: asdict(watch.measure()))
    if drift is not None and all(map(math.isfinite, drift.values())):
        return drift
    outcome.drift_failed = True
    why = reason or "the result is not a number"
    text = f"The drift from the prior could not be measured ({why}): training goes on without it."
    emit(NoticeEvent(text, run.steps_done))
    return None

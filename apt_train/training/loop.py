"""The loop: one optimizer step after another (update.py), with snapshots, drift and previews when due."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..events import NoticeEvent, StepEvent
from .listener import Listener
from .out_of_memory import forget, is_out_of_memory, leaner_mode
from .outcome import Outcome
from .pace import SPILLS, Pace, seconds_left
from .previewing import try_previews
from .saving import save_snapshot
from .stopping import ended_by_itself
from .update import optimizer_step
from .watching import FirstSteps, catch_up, is_due, try_drift

if TYPE_CHECKING:
    from .running import Run


def run_steps(outcome: Outcome, listener: Listener) -> None:
    """Run until the last step, or until a stopping rule ends the run. The caller's exceptions pass through."""
    run, output = outcome.run, outcome.run.config.output
    listener.stop_if_asked()
    catch_up(outcome, listener)
    listener(replace(run.plan.event, seconds=seconds_left(run)))
    pace, first = Pace(run.device), FirstSteps(run.components.schedule.prediction)
    ended = outcome.ending
    while run.steps_done < run.config.steps and ended is None:
        started = time.perf_counter()
        values = _stepped(run, listener)
        seconds = time.perf_counter() - started
        event = StepEvent(step=run.steps_done, total=run.config.steps, **values, seconds=seconds)
        keeps = is_due(run.steps_done, output.snapshot_every)
        try:
            event = replace(event, drift=try_drift(outcome, listener)) if keeps else event
        finally:  # the step is done, even if measuring was interrupted
            outcome.add(event)
            listener.keep_notices(outcome.folder)
        if keeps:
            save_snapshot(outcome)
        listener(event)
        listener.stop_if_asked()
        if pace.is_news(seconds):
            listener(NoticeEvent(SPILLS))
        if notice := first.notice(event):
            listener(NoticeEvent(notice, run.steps_done))
        if is_due(run.steps_done, output.preview_every):
            try_previews(outcome, listener)
        ended = outcome.ending if keeps else None
    if ended is not None and ended.step < run.config.steps:
        listener(NoticeEvent(ended_by_itself(ended, run.config.steps, run.steps_done), run.steps_done))


def _stepped(run: Run, listener: Listener) -> dict[str, Any]:
    """Take an optimizer step; if memory runs out or compiling fails, repeat the same step in a way that needs less."""
    while True:
        try:
            return optimizer_step(run)
        except (RuntimeError, MemoryError) as error:
            change = leaner_mode(run) if is_out_of_memory(error) else None
            if change is None and run.compiled.failed and not run.updating:
                change = partial(_uncompiled, str(error))
            if change is None:
                raise
        told = change(run)
        forget(run)
        listener(NoticeEvent(told, run.steps_done))


def _uncompiled(failure: str, run: Run) -> str:
    """Train on without compiled blocks. Returns a notice for the user."""
    run.compiled.close()
    reasons = [line.strip() for line in failure.splitlines() if line.strip() and not line.endswith("raised:")]
    reason = reasons[0][:200] if reasons else "no reason given"
    return f"The compiled blocks failed ({reason}): training goes on without compiling."

"""`train()`: the only loop.

It reads top to bottom: what a run is made of (plan.py, setup.py), its folder (opening.py), one optimizer step after the
other (update.py, step.py), snapshots and previews when due, and at the end, however it comes, the files (finish.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..data.dataset import ImageSet
from ..errors import InputError
from ..events import Callback, NoticeEvent, StepEvent, StopTraining, TrainResult
from ..families.components import Components
from .finish import finish, stopped_early, write_extras
from .listener import Listener
from .opening import begin, held, open_folder
from .outcome import Outcome
from .plan import plan_run
from .room import SPILLS, Pace, can_step_down, is_out_of_memory, step_down
from .saving import save_snapshot
from .setup import Run, prepared_run
from .stopping import ended_by_itself
from .update import TrainingDiverged, optimizer_step
from .watching import catch_up, is_due, try_drift, try_previews


def train(
    components: Components,
    images: ImageSet,
    config: TrainConfig,
    *,
    prior_images: ImageSet | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    on_event: Callback | None = None,
    record: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Personalize a diffusion model to one subject and return its LoRA.

    Args:
        components: the model; its modules are moved to `device` and the run's precision in place, and come back on
            the CPU without the adapter.
        images: pictures of the subject.
        config: every setting.
        prior_images: pictures of the class for DreamBooth's prior preservation.
        output_dir: where the run lives; None: nothing is written.
        resume: go on with the run in `output_dir` (on the CPU: bit for bit as if it had never stopped).
        device: None: CUDA if there is one, else the CPU.
        on_event: gets a `PlanEvent` before the first step, and every `StepEvent`, `PreviewEvent`, `NoticeEvent` and
            `BusyEvent`; it may raise `StopTraining`, which ends the run normally. Any other exception passes on after
            the last completed step has been saved. Stopped while the run is being prepared, nothing is written and the
            result has no LoRA.
        record: kept in `config.json` beside the settings.

    Raises:
        InputError: something given cannot be used; nothing has been written. Also a full disk, too little memory, or
            a loss that is no number (`TrainingDiverged`): the last good snapshot is kept.
    """
    plan = plan_run(components, images, config, prior_images=prior_images, device=device)
    folder = open_folder(output_dir, config.name, resume)
    listener = Listener(on_event, folder.path if folder is not None and resume else None)
    if folder is not None and resume:
        folder.check_same_run(plan.digest, config, plan.dtype, plan.parts)
    _ = plan.event  # its estimate needs the modules as they are now

    with (
        contextlib.suppress(StopTraining),  # while the run is prepared: there is no step yet to stop after
        _memory_in_words(),
        held(folder if resume else None),  # before the model takes the room of the one that trains there
        prepared_run(plan, listener.notice, listener.busy) as run,
        held(None if resume else folder),  # not before all is known to be usable, as it makes the folder
    ):
        outcome = Outcome(run=run, folder=folder, digest=plan.digest)
        if folder is not None:
            begin(outcome, resume, {**(record or {}), "parts": plan.parts}, listener)
        try:
            _run_steps(outcome, listener)
        except StopTraining:
            outcome.stopped = True
        except TrainingDiverged:
            raise
        except BaseException:
            # Cancelled by the host, out of memory, a bug in a callback: the work so far is the user's.
            if not run.updating:
                run.indicator.discard()
                finish(outcome)
            raise
        result = finish(outcome)
        report = write_extras(outcome, listener) if run.steps_done else None
        return replace(result, report=report, notices=listener.notices.texts)
    return stopped_early(config, listener, folder.path if folder and resume else None)


def _run_steps(outcome: Outcome, listener: Listener) -> None:
    run, output = outcome.run, outcome.run.config.output
    listener.stop_if_asked()
    catch_up(outcome, listener)
    listener(run.plan.event)
    pace = Pace(run.device)
    ended = outcome.ending
    while run.steps_done < run.config.steps and ended is None:
        started = time.perf_counter()
        values = _stepped(run, listener)
        seconds = time.perf_counter() - started
        event = StepEvent(step=run.steps_done, total=run.config.steps, **values, seconds=seconds)
        keeps = is_due(run.steps_done, output.snapshot_every)
        try:
            event = replace(event, drift=try_drift(outcome, listener)) if keeps else event
        finally:  # the step is done, also where measuring is broken off
            outcome.add(event)
            listener.keep_notices(outcome.folder)
        if keeps:
            save_snapshot(outcome)
        listener(event)
        if pace.is_news(seconds):
            listener(NoticeEvent(SPILLS))
        if is_due(run.steps_done, output.preview_every):
            try_previews(outcome, listener)
        ended = outcome.ending if keeps else None
    if ended is not None and ended.step < run.config.steps:
        listener(NoticeEvent(ended_by_itself(ended, run.config.steps), run.steps_done))


def _stepped(run: Run, listener: Listener) -> dict[str, Any]:
    """An optimizer step; where memory runs out, the same one again on less, rung by rung."""
    while True:
        try:
            return optimizer_step(run)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and can_step_down(run)):
                raise
        listener(NoticeEvent(step_down(run), run.steps_done))


@contextlib.contextmanager
def _memory_in_words() -> Generator[None]:
    """Running out of memory is something a user can act on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_OUT_OF_MEMORY) from error


_OUT_OF_MEMORY = (
    "Out of memory: lower the resolution or the batch size (raise accumulation instead), turn gradient checkpointing "
    "on, or lower the rank."
)

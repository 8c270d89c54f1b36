"""`train()`: the only loop.

It reads top to bottom: what a run is made of (setup.py), one optimizer step after the other (update.py, step.py),
snapshots and previews when due, and at the end, however it comes, the files (finish.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..data.dataset import ImageSet
from ..errors import InputError
from ..events import BusyEvent, Callback, Event, NoticeEvent, StepEvent, StopTraining, TrainResult, Work
from ..families.components import Components
from ..names import snapshot_folders, snapshot_steps
from ..paths import expanded
from ..run.folder import RunFolder
from ..run.notices import Notices, read_notices
from ..run.preview_files import drop_newer_previews
from ..run.snapshot import drop_old_states, read_newest_state, set_aside_newer
from ..run.state import check_state, most_state_bytes, restore_state
from ..sample.drift import unrelated_prompts
from ..text.captions import trigger_text
from .finish import finish, write_extras
from .outcome import Outcome
from .plan import plan_run
from .room import SPILLS, STEPPED_DOWN, Pace, can_step_down, is_out_of_memory, step_down
from .saving import save_snapshot
from .setup import Run, prepared_run
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
    folder = _open_folder(output_dir, config.name, resume)
    listener = _Listener(on_event, folder.path if folder is not None and resume else None)
    if folder is not None and resume:
        folder.check_same_run(plan.digest, config, plan.dtype, plan.parts)
    _ = plan.event  # its estimate needs the modules as they are now

    with (
        contextlib.suppress(StopTraining),  # while the run is prepared: there is no step yet to stop after
        _memory_in_words(),
        _held(folder if resume else None),  # before the model takes the room of the one that trains there
        prepared_run(plan, listener.notice, listener.busy) as run,
        _held(None if resume else folder),  # not before all is known to be usable, as it makes the folder
    ):
        outcome = Outcome(run=run, folder=folder, digest=plan.digest)
        if folder is not None:
            _begin(outcome, resume, {**(record or {}), "parts": plan.parts}, listener)
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
    return _stopped_early(config, listener, folder if resume else None)


def _run_steps(outcome: Outcome, listener: _Listener) -> None:
    run, output = outcome.run, outcome.run.config.output
    listener.stop_if_asked()
    catch_up(outcome, listener)
    listener(run.plan.event)
    pace = Pace(run.device)
    while run.steps_done < run.config.steps:
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


def _stepped(run: Run, listener: _Listener) -> dict[str, Any]:
    """An optimizer step; where memory runs out, the same one again on less, once in a run."""
    try:
        return optimizer_step(run)
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) and can_step_down(run)):
            raise
    step_down(run)
    listener(NoticeEvent(STEPPED_DOWN, run.steps_done))
    return optimizer_step(run)


class _Listener:
    """The caller's callback, and the notices told to it. A stop asked for at a notice waits for a step to end after.

    `resumed`: the folder of the run that goes on, whose steps and notices are there already.
    """

    def __init__(self, callback: Callback | None, resumed: Path | None) -> None:
        self._callback = callback
        self._stop = False
        self._keeps_in: Path | None = None
        self.step = max(snapshot_steps(resumed), default=0) if resumed else 0  # the last that has ended
        self.notices = Notices(read_notices(resumed) if resumed else [])

    def __call__(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            event = self._kept(event)
        elif isinstance(event, StepEvent):
            self.step = event.step
        if self._callback is None:
            return
        try:
            self._callback(event)
        except StopTraining:
            if not (isinstance(event, NoticeEvent) or (isinstance(event, BusyEvent) and event.what == "report")):
                raise
            self._stop = True

    def notice(self, text: str) -> None:
        """Of the model, the pictures and the settings, which stay the same when the run is resumed: told once."""
        if text not in self.notices.texts:
            self(NoticeEvent(text))

    def busy(self, what: Work, done: int, total: int) -> None:
        self(BusyEvent(what, self.step, done, total))

    def keep_notices(self, folder: RunFolder | None) -> None:
        """From now on write at once what is told. To be called after a step: a run without one leaves nothing."""
        if folder is not None:
            self._keeps_in = folder.path
            self.notices.write(folder.path)

    def _kept(self, event: NoticeEvent) -> NoticeEvent:
        event = replace(event, step=max(event.step, self.step))
        self.notices.add(event.text, event.step)
        if self._keeps_in is not None:
            self.notices.write(self._keeps_in)
        return event

    def stop_if_asked(self) -> None:
        if self._stop:
            raise StopTraining


def _stopped_early(config: TrainConfig, listener: _Listener, folder: RunFolder | None) -> TrainResult:
    """The result of a run stopped while it was prepared; `folder`: of the run that was to go on, left as it was."""
    return TrainResult(
        lora={},
        embeddings=None,
        trigger=trigger_text(config.name, config.class_word, config.identifier_mode),
        steps_done=listener.step,
        stopped=True,
        run_dir=folder.path if folder else None,
        notices=listener.notices.texts,
    )


def _held(folder: RunFolder | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if folder is None else folder.held()


def _open_folder(output_dir: str | Path | None, name: str, resume: bool) -> RunFolder | None:
    if output_dir is None:
        if resume:
            raise InputError("resume needs the folder of the run to go on with: give output_dir.")
        return None
    path = expanded(output_dir, "The output folder")
    return RunFolder.open_existing(path, name) if resume else RunFolder.open_new(path, name)


def _go_on(run: Run, folder: RunFolder, listener: _Listener) -> None:
    """Put back the newest state that is as it was written; a run that never came to a snapshot starts again."""
    state, faults = read_newest_state(folder.snapshots, lambda found: check_state(run, found), most_state_bytes(run))
    if state is None:
        if folder.lora.exists() and not snapshot_folders(folder.snapshots):
            raise InputError(
                f"{folder.path} has a LoRA, but no snapshot to go on from: restore its {folder.snapshots.name}, or "
                "train anew in another folder."
            )
        if snapshot_folders(folder.snapshots):
            raise InputError(
                f"{folder.path} has snapshots, but no state that can be read ({'; '.join(faults)}): restore a "
                "state.safetensors and state.json, or train anew in another folder."
            )
        return
    if state.step > run.config.steps:
        raise InputError(
            f"{folder.path} is at step {state.step} already: give a total above that, not {run.config.steps}."
        )
    restore_state(run, state)
    kept = [place.name for place in set_aside_newer(folder.snapshots, state.step)]
    drop_old_states(folder.snapshots)
    if faults:
        listener.notice(
            f"The newest state cannot be used ({'; '.join(faults)}), so the run goes on from step {state.step}; what "
            f"came after it is kept as {', '.join(kept)} in {folder.snapshots.name}."
        )


def _begin(outcome: Outcome, resume: bool, record: Mapping[str, Any], listener: _Listener) -> None:
    """Write the folder's first files, or put back what the newest snapshot holds and cut the log to it."""
    folder, run = outcome.folder, outcome.run
    assert folder is not None
    rescaled = resume and _drift_prompts(folder.config()) != _drift_prompts(run.config)
    if resume:
        _go_on(run, folder, listener)
        drop_newer_previews(folder.previews, run.steps_done)
    else:
        RunFolder.open_new(folder.path, folder.name)  # again: another process may have come first
    bins = run.config.apt.bins
    if rescaled:  # another scale; cut before config.json says so, as the next call sees only what that says
        folder.cut_log(run.steps_done, bins=bins, without=("drift",))
    facts = {
        "num_timesteps": run.components.schedule.num_timesteps,
        "dtype": str(run.dtype),
        "terms": {term.name: {"title": term.title, "colour": term.colour} for term in run.terms},
    }
    folder.start(outcome.digest, run.config, {**(folder.record() if resume else {}), **facts, **record})
    log = folder.cut_log(run.steps_done, bins=bins)
    for line in log.lines:
        if len(line["gamma"]) == bins:
            outcome.remember(line["loss"], line["gamma"])
    listener.step = run.steps_done
    if run.steps_done:
        listener.keep_notices(folder)
    for note in filter(None, (log.notice(), log.gap(run.steps_done))):
        listener.notice(note)
    if rescaled:
        listener(NoticeEvent("The drift prompts are others than before: the drift measured so far is dropped."))


def _drift_prompts(config: TrainConfig) -> list[str]:
    return unrelated_prompts(config.output.drift_prompts, config.class_word)


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
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

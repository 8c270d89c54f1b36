"""What a run measures and draws on its way: the drift from the prior, the previews.

In: when they are due, asking the caller before each call of the UNet, going on without them where they fail. Not in:
measuring and drawing themselves (`sample`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..events import BusyEvent, Callback, NoticeEvent, PreviewEvent, Work
from ..names import LOG
from ..report.filmstrip import write_filmstrip
from ..run.log import read_log
from ..run.preview_files import preview_file, save_previews
from ..sample.sampler import Drawing, Sampler, previews
from .outcome import Outcome
from .plan import preview_captions
from .setup import Run
from .streams import vae_on


def catch_up(outcome: Outcome, emit: Callback) -> None:
    """Measure and draw what the step that a run goes on from still lacks: it was broken off after its snapshot."""
    run, folder, output = outcome.run, outcome.folder, outcome.run.config.output
    if folder is None or not run.steps_done:
        return
    lines = read_log(folder.path / LOG, run.config.apt.bins).lines
    if _lacks_drift(lines, run.steps_done, output.snapshot_every):
        drift = try_drift(outcome, emit)
        if drift is not None:
            folder.add_drift(run.steps_done, drift)
            outcome.measured.append({"step": run.steps_done, **drift})
    if is_due(run.steps_done, output.preview_every) and not _has_previews(outcome, folder.previews):
        try_previews(outcome, emit)


def is_due(step: int, every: int) -> bool:
    """Whether something happens after this step; `every` 0: never."""
    return every > 0 and step % every == 0


def _lacks_drift(lines: list[dict[str, Any]], step: int, every: int) -> bool:
    """Whether only the last of the drifts due was not measured.

    Where an earlier one is missing, too, it was not wanted, could not be measured, or was on other prompts and dropped.
    """
    missing = [line["step"] for line in lines if is_due(line["step"], every) and not line.get("drift")]
    return missing == [step]


def _has_previews(outcome: Outcome, folder: Path) -> bool:
    """Whether the previews of this step are there."""
    step, count = outcome.run.steps_done, len(outcome.run.config.sampled_prompts)
    return all(preview_file(folder, step, i, kind).is_file() for i in range(count) for kind in ("prior", "tuned"))


def try_drift(outcome: Outcome, emit: Callback) -> dict[str, float] | None:
    """How far the model has left the prior; None where that is not measured, or can no longer be."""
    run, reason = outcome.run, "the result is not a number"
    if run.drift is None or outcome.drift_failed:
        return None
    with _interruptible(run, emit, "drift", run.drift.calls):
        try:
            drift = asdict(run.drift.measure())
            if all(map(math.isfinite, drift.values())):
                return drift
        except (RuntimeError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
    outcome.drift_failed = True
    _free_memory(run.device)
    text = f"The drift from the prior could not be measured ({reason}): training goes on without it."
    emit(NoticeEvent(text, run.steps_done))
    return None


def try_previews(outcome: Outcome, emit: Callback) -> None:
    """Previews are no part of the training: where they cannot be drawn or saved, it goes on without them."""
    if outcome.previews_failed:
        return
    event, reason = None, ""
    with _interruptible(outcome.run, emit, "previews", _preview_calls(outcome)):
        try:
            event = _draw_previews(outcome, emit)
        except (RuntimeError, MemoryError) as error:
            outcome.previews_failed, reason = True, str(error).partition("\n")[0]
    if event is not None:
        return emit(event)
    _free_memory(outcome.run.device)
    emit(NoticeEvent(f"The previews failed ({reason}): training goes on without them.", outcome.run.steps_done))


def _preview_calls(outcome: Outcome) -> int:
    """How often the UNet is called for the previews that are due: one picture at a time, the prior's once."""
    config = outcome.run.config
    each = len(preview_captions(config)) * config.output.preview_steps
    return each * (2 if outcome.prior_previews is None else 1)


class _Answer(BaseException):
    """Carries what a callback raised past those who handle failures of the work it interrupts."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextlib.contextmanager
def _interruptible(run: Run, emit: Callback, what: Work, calls: int) -> Generator[None]:
    """Inside the block the caller is asked before every UNet call, of `calls`; what it raises comes out as it is."""
    done = itertools.count()

    def ask(*_: object) -> None:
        try:
            return emit(BusyEvent(what, run.steps_done, next(done), calls))
        except BaseException as error:
            answer = _Answer(error)
        raise answer  # here, where the two are not chained: what comes out would lead back to itself

    hook = run.components.unet.register_forward_pre_hook(ask)
    try:
        yield
    except _Answer as answer:
        raise answer.error from answer.error.__cause__
    finally:
        hook.remove()


def _free_memory(device: torch.device) -> None:
    """Called behind the block that held what a failed sampling had taken."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _draw_previews(outcome: Outcome, emit: Callback) -> PreviewEvent:
    """Draw the preview prompts, prior and tuned with the same seeds, and save them. `emit`: for notices."""
    began = time.perf_counter()
    run, output = outcome.run, outcome.run.config.output
    prompts = list(run.config.sampled_prompts)
    prior, tuned = previews(
        _sampler(run, emit),
        run.adapter,
        run.conditioner,
        preview_captions(run.config),
        Drawing(output.preview_seed, output.preview_steps, output.preview_guidance),
        outcome.prior_previews,
    )
    outcome.prior_previews = prior
    if outcome.folder is not None:
        save_previews(outcome.folder.previews, run.steps_done, prompts, prior=prior, tuned=tuned)
        with contextlib.suppress(InputError):  # open in another program, say; the report draws it again
            write_filmstrip(outcome.folder.path, run.config)
    return PreviewEvent(
        step=run.steps_done,
        prompts=prompts,
        prior=list(prior),  # the caller's own: the next previews are drawn beside ours
        tuned=tuned,
        unseen=bool(run.config.unseen_prompt),
        seconds=time.perf_counter() - began,
    )


def _sampler(run: Run, emit: Callback) -> Sampler:
    """On the run's device, where the VAE comes for each decoding alone."""

    def decode(latents: Tensor) -> Tensor:
        with vae_on(run.components, run.device, alone=run.plan.sets_aside):
            return run.components.decode(latents).cpu()

    return Sampler(
        replace(run.components, decode=decode),
        (run.plan.side, run.plan.side),
        run.device,
        run.dtype,
        on_notice=lambda text: emit(NoticeEvent(text)),
    )

"""The previews of a run: prior and tuned pictures of its prompts.

In: asking the caller before each call of the UNet, going on without them where they fail. Not in: drawing itself
(`sample.sampler`), when they are due (`loop`).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..events import Callback, NoticeEvent, PreviewEvent
from ..report.filmstrip import write_filmstrip
from ..run.preview_files import preview_file, save_previews
from ..sample.sampler import Drawing, Sampler, previews
from ..text.captions import preview_captions
from .asking import free_memory, interruptible
from .outcome import Outcome
from .running import Run
from .streams import vae_on


def has_previews(outcome: Outcome, folder: Path) -> bool:
    """Whether the previews of this step are there."""
    step, count = outcome.run.steps_done, len(outcome.run.config.sampled_prompts)
    return all(preview_file(folder, step, i, kind).is_file() for i in range(count) for kind in ("prior", "tuned"))


def try_previews(outcome: Outcome, emit: Callback) -> None:
    """Previews are no part of the training: where they cannot be drawn or saved, it goes on without them."""
    if outcome.previews_failed:
        return
    event, reason = None, ""
    with interruptible(outcome.run, emit, "previews", _preview_calls(outcome)):
        try:
            event = _draw_previews(outcome, emit)
        except (RuntimeError, MemoryError) as error:
            outcome.previews_failed, reason = True, str(error).partition("\n")[0]
    if event is not None:
        return emit(event)
    free_memory(outcome.run.device)
    emit(NoticeEvent(f"The previews failed ({reason}): training goes on without them.", outcome.run.steps_done))


def _preview_calls(outcome: Outcome) -> int:
    """How often the UNet is called for the previews that are due: one picture at a time, the prior's once."""
    config = outcome.run.config
    each = len(preview_captions(config)) * config.output.preview_steps
    return each * (2 if outcome.prior_previews is None else 1)


def _draw_previews(outcome: Outcome, emit: Callback) -> PreviewEvent:
    """Draw the preview prompts, prior and tuned with the same seeds, and save them. `emit`: for notices."""
    began = time.perf_counter()
    run, output = outcome.run, outcome.run.config.output
    prompts = list(run.config.sampled_prompts)
    prior, tuned = previews(
        _sampler(run, emit),
        run.adapter,
        run.inputs.conditioner,
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

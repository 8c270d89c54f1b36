"""The previews of a run: prior and tuned pictures of its prompts.

In: what is drawn and saved, training on if previews fail. Not in: drawing (`sample.sampler`), interrupting it
(`interruptible`), when they are due (`loop`).
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
from .interruptible import attempted
from .outcome import Outcome
from .running import Run
from .vae_visits import vae_on


def has_previews(outcome: Outcome, folder: Path) -> bool:
    """Whether this step's previews exist."""
    step, count = outcome.run.steps_done, len(outcome.run.config.sampled_prompts)
    return all(preview_file(folder, step, i, kind).is_file() for i in range(count) for kind in ("prior", "tuned"))


def try_previews(outcome: Outcome, emit: Callback) -> None:
    """Draw and save previews. They are optional: if that fails, training goes on without them."""
    if outcome.previews_failed:
        return
    config = outcome.run.config
    pictures = len(config.sampled_prompts) * (2 if outcome.prior_previews is None else 1)  # the prior's once per run
    calls = pictures * config.output.preview_steps
    event, reason = attempted(outcome.run, emit, "previews", calls, lambda ask: _draw_previews(outcome, ask))
    if event is not None:
        return emit(event)
    outcome.previews_failed = True
    emit(NoticeEvent(f"The previews failed ({reason}): training goes on without them.", outcome.run.steps_done))


def _draw_previews(outcome: Outcome, emit: Callback) -> PreviewEvent:
    """Draw the preview prompts, prior and tuned with the same seeds, and save them. `emit`: for notices."""
    began = time.perf_counter()
    run, output = outcome.run, outcome.run.config.output
    prompts, captions = list(run.config.sampled_prompts), preview_captions(run.config)
    drawing, known = Drawing(output.preview_seed, output.preview_steps, output.preview_guidance), outcome.prior_previews
    prior, tuned = previews(_sampler(run, emit), run.adapter, run.inputs.conditioner, captions, drawing, known)
    outcome.prior_previews = prior
    if outcome.folder is not None:
        save_previews(outcome.folder.previews, run.steps_done, prompts, prior=prior, tuned=tuned)
        with contextlib.suppress(InputError):  # perhaps open in another program; the report draws it again
            write_filmstrip(outcome.folder.path, run.config)
    return PreviewEvent(
        step=run.steps_done,
        prompts=prompts,
        prior=list(prior),  # a copy for the caller: later previews reuse ours
        tuned=tuned,
        unseen=bool(run.config.unseen_prompt),
        seconds=time.perf_counter() - began,
    )


def _sampler(run: Run, emit: Callback) -> Sampler:
    """A sampler on the run's device; the VAE visits the device only for decoding."""

    def decode(latents: Tensor) -> Tensor:
        with vae_on(run.components, run.device, alone=run.plan.sets_aside):
            return run.components.decode(latents).cpu()

    components, size = replace(run.components, decode=decode), (run.plan.side, run.plan.side)
    return Sampler(components, size, run.device, run.plan.dtype, on_notice=lambda text: emit(NoticeEvent(text)))

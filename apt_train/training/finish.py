"""What a run leaves behind: snapshots and previews on the way, the LoRA, the embedding and the report at the end."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from ..disk.files import atomic_write, flush, make_folder
from ..events import BusyEvent, Callback, NoticeEvent, PreviewEvent, StepEvent, TrainResult, Work
from ..names import ATTENTION, LOG, STATE_VALUES, embedding_stem, step_folder
from ..paths import argument, command
from ..report import write_report
from ..run.export import check_lora_keys, lora_to_kohya, save_embedding, save_lora
from ..run.folder import RunFolder, check_folder
from ..run.log import read_log
from ..run.metadata import embedding_metadata, lora_metadata
from ..run.snapshot import is_intact, write_snapshot
from ..run.state import take_state
from ..sample.sampler import previews
from ..text.captions import trigger_text
from .attention_probe import write_attention
from .plan import preview_captions
from .setup import Run
from .streams import vae_on


@dataclass
class Outcome:
    """A run and what has come of it so far."""

    run: Run
    folder: RunFolder | None
    digest: str
    losses: list[float] = field(default_factory=list)
    gamma: list[list[float]] = field(default_factory=list)
    stopped: bool = False
    prior_previews: list[Image.Image] | None = None  # drawn once: the prior does not change
    previews_failed: bool = False
    drift_failed: bool = False

    def add(self, event: StepEvent) -> None:
        self.remember(event.loss, list(event.gamma))
        if self.folder is not None:
            self.folder.log(event)

    def remember(self, loss: float | None, gamma: list[float | None]) -> None:
        """A step's numbers; what a damaged log no longer says is NaN."""
        self.losses.append(math.nan if loss is None else loss)
        self.gamma.append([math.nan if value is None else value for value in gamma])


def finish(outcome: Outcome) -> TrainResult:
    """Save the last completed step, export the LoRA, hand the result over; before the first step nothing is written."""
    run, folder = outcome.run, outcome.folder
    lora, embeddings = current_lora(run), _embeddings(run)
    if folder is not None and run.steps_done:
        folder.complete()
        if not _is_saved(run, folder):
            save_snapshot(outcome)
        _write_lora(run, lora, folder.lora)
        if embeddings is not None:
            _write_embedding(run, embeddings, folder.embedding)
    return TrainResult(
        lora=lora,
        embeddings=embeddings,
        trigger=trigger_text(run.config.name, run.config.class_word, run.config.identifier_mode),
        steps_done=run.steps_done,
        stopped=outcome.stopped,
        run_dir=folder.path if folder else None,
        losses=outcome.losses,
        gamma=numpy.array(outcome.gamma, dtype=numpy.float64).reshape(-1, run.config.apt.bins),
    )


def _is_saved(run: Run, folder: RunFolder) -> bool:
    """Whether the snapshot of the step that the run stands at is there, as it was written."""
    names = [folder.lora.name] + ([folder.embedding.name] if run.identifier is not None else [])
    place = step_folder(folder.snapshots, run.steps_done)
    return (place / STATE_VALUES).exists() and is_intact(place, names)


def write_extras(outcome: Outcome, emit: Callback) -> Path | None:
    """Attention maps and report, once the LoRA is safe: they are no part of it, so their failure is only told.

    The path of the report; None where there is no folder for one, or it failed.
    """
    if outcome.folder is None:
        return None
    emit(BusyEvent("report", outcome.run.steps_done))
    try:
        write_attention(outcome.run, outcome.folder.path / ATTENTION)
        return write_report(outcome.folder.path)
    except Exception as error:
        again = command("report", argument(outcome.folder.path))
        text = f"The LoRA is written, but the report failed ({error}): try `{again}`."
        emit(NoticeEvent(text, outcome.run.steps_done))
    return None


def save_snapshot(outcome: Outcome) -> None:
    """LoRA, embedding and full state of the step that has just ended; nothing without a folder."""
    run, folder = outcome.run, outcome.folder
    if folder is None:
        return
    lora, embeddings = current_lora(run), _embeddings(run)
    files: dict[str, Callable[[Path], None]] = {
        folder.lora.name: lambda path: _write_lora(run, lora, path),
    }
    if embeddings is not None:
        files[folder.embedding.name] = lambda path: _write_embedding(run, embeddings, path)
    folder.complete()
    check_folder(folder.snapshots)
    with contextlib.suppress(OSError):  # what a state follows must be on the disk before it
        flush(folder.path / LOG)
    write_snapshot(folder.snapshots, take_state(run), files)


def current_lora(run: Run) -> dict[str, Tensor]:
    """The LoRA as it stands, in kohya names."""
    unet: Any = run.components.unet
    family = run.components.family
    return lora_to_kohya(run.adapter.state(), run.config.adapter.effective_alpha, family, unet.config)


def _embeddings(run: Run) -> dict[str, Tensor] | None:
    return run.identifier.embeddings() if run.identifier is not None else None


def _write_lora(run: Run, lora: dict[str, Tensor], path: Path) -> None:
    check_lora_keys(lora, run.components.unet, run.components.family)
    save_lora(path, lora, _lora_metadata(run))


def _write_embedding(run: Run, embeddings: dict[str, Tensor], path: Path) -> None:
    save_embedding(path, embeddings, embedding_metadata(**_shared_metadata(run)))


def _lora_metadata(run: Run) -> dict[str, str]:
    config, components = run.config, run.components
    return lora_metadata(
        **_shared_metadata(run),
        prediction_type=components.schedule.prediction,
        rank=config.adapter.rank,
        alpha=config.adapter.effective_alpha,
        config=config.to_dict(),
        captions=run.subject.captions,
        resolution=config.data.resolution or None,
        zero_terminal_snr=components.schedule.zero_terminal_snr,
        embedding_name=embedding_stem(config.name) if run.identifier is not None else "",
        summary={"gamma": [round(value, 4) for value in run.indicator.gamma.tolist()]},
    )


def _shared_metadata(run: Run) -> dict[str, Any]:
    """What the LoRA's and the embedding's metadata have in common."""
    config, components = run.config, run.components
    return {
        "name": config.name,
        "trigger": trigger_text(config.name, config.class_word, config.identifier_mode),
        "class_word": config.class_word,
        "family": components.family,
        "steps": run.steps_done,
        "base_name": components.source,
        "base_digest": components.digest,
    }


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
    if is_due(run.steps_done, output.preview_every) and not all(path.is_file() for path in _preview_files(outcome)):
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


def _preview_files(outcome: Outcome) -> list[Path]:
    """Where the previews of this step belong."""
    folder, run = outcome.folder, outcome.run
    assert folder is not None
    count = len(run.config.output.preview_prompts or ("the caption template",))
    return [preview_file(folder.previews, run.steps_done, i, kind) for i in range(count) for kind in ("prior", "tuned")]


def try_drift(outcome: Outcome, emit: Callback) -> dict[str, float] | None:
    """How far the model has left the prior; None where that is not measured, or can no longer be."""
    run, reason = outcome.run, "it came to no number"
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
    reason = ""
    with _interruptible(outcome.run, emit, "previews", _preview_calls(outcome)):
        try:
            event = _draw_previews(outcome, emit)
        except (RuntimeError, MemoryError) as error:
            outcome.previews_failed, reason = True, str(error).partition("\n")[0]
    if not outcome.previews_failed:
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
def _interruptible(run: Run, emit: Callback, what: Work, calls: int) -> Iterator[None]:
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
    run, output, family = outcome.run, outcome.run.config.output, outcome.run.components.family
    prompts = list(output.preview_prompts or (run.config.data.caption_template,))
    side = run.config.data.resolution or family.resolution
    with vae_on(run.components, run.device):
        prior, tuned = previews(
            run.components,
            run.adapter,
            run.conditioner,
            preview_captions(run.config),
            seed=output.preview_seed,
            steps=output.preview_steps,
            guidance=output.preview_guidance,
            height=side,
            width=side,
            device=run.device,
            dtype=run.dtype,
            prior=outcome.prior_previews,
            on_notice=lambda text: emit(NoticeEvent(text)),
        )
    outcome.prior_previews = prior
    event = PreviewEvent(step=run.steps_done, prompts=prompts, prior=prior, tuned=tuned)
    if outcome.folder is not None:
        _save_previews(outcome.folder.previews, event)
    return event


def _save_previews(folder: Path, event: PreviewEvent) -> None:
    if folder.is_file():
        raise RuntimeError(f"{folder} is a file")
    make_folder(folder)
    for kind, pictures in (("prior", event.prior), ("tuned", event.tuned)):
        for i, picture in enumerate(pictures):
            atomic_write(preview_file(folder, event.step, i, kind), partial(picture.save, format="PNG"))


def drop_newer_previews(folder: Path, step: int) -> None:
    """Remove previews beyond `step`: of steps that were lost, and that a resumed run will train and draw again."""
    if folder.is_symlink():
        return
    for path in folder.glob("step_*.png"):
        drawn = re.fullmatch(r"step_([0-9]+)_[0-9]+_(?:prior|tuned)\.png", path.name)
        if drawn is not None and int(drawn[1]) > step:
            with contextlib.suppress(OSError):  # open in another program: it will be drawn over
                path.unlink()


def preview_file(folder: Path, step: int, prompt: int, kind: str) -> Path:
    """Where a preview lies; `kind`: prior or tuned."""
    return folder / f"step_{step:06d}_{prompt}_{kind}.png"

"""`train()`: the only loop.

It reads top to bottom: what a run is made of (setup.py), one optimizer step after the other (step.py), snapshots and
previews when due (snapshot.py, sample.py), and at the end, however it comes, the files (finish.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .components import Components
from .config import TrainConfig
from .dataset import ImageSet
from .errors import InputError
from .events import Callback, Event, NoticeEvent, StepEvent, StopTraining, TrainResult
from .finish import Outcome, finish, save_snapshot, send_previews, write_extras
from .rng import seeded
from .run_folder import RunFolder, content_hash
from .setup import Run, prepared_run
from .snapshot import drop_newer, read_newest_state, restore_state


class TrainingDiverged(InputError):
    """The loss or the gradient is not a number any more; the files of the last good snapshot stay as they are."""


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
        on_event: gets every `StepEvent`, `PreviewEvent` and `NoticeEvent`; it may raise `StopTraining`, which ends the
            run normally. Any other exception passes on after the last completed step has been saved.
        record: kept in `config.json` beside the settings.

    Raises:
        InputError: something given cannot be used; nothing has been written. Also a full disk, too little memory, or
            a loss that is no number (`TrainingDiverged`): the last good snapshot is kept.
    """
    device = _resolve_device(device)
    emit = on_event or _ignore
    folder = _open_folder(output_dir, config.name, resume)
    digest = content_hash(components.digest, images.digest, prior_images.digest if prior_images else "", config)
    if folder is not None and resume:
        folder.check_same_run(digest, config)

    with (
        _memory_in_words(),
        prepared_run(components, images, prior_images, config, device, lambda text: emit(NoticeEvent(text))) as run,
    ):
        outcome = Outcome(run=run, folder=folder, digest=digest)
        if folder is not None:
            _begin(outcome, resume, record or {})
        try:
            _run_steps(outcome, emit)
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
        write_extras(outcome, emit)
        return result


def _run_steps(outcome: Outcome, emit: Callback) -> None:
    run, output = outcome.run, outcome.run.config.output
    for step in range(run.steps_done, run.config.steps):
        started = time.perf_counter()
        values = optimizer_step(run, step)
        run.steps_done = step + 1
        event = StepEvent(step=step + 1, total=run.config.steps, **values, seconds=time.perf_counter() - started)
        outcome.add(event)
        if output.snapshot_every and run.steps_done % output.snapshot_every == 0:
            save_snapshot(outcome)
        emit(event)
        if output.preview_every and run.steps_done % output.preview_every == 0:
            send_previews(outcome, emit)


def optimizer_step(run: Run, step: int) -> dict[str, Any]:
    """One optimizer step (`step` is 0-based); the values of its `StepEvent`."""
    config, settings = run.config, run.config.optimizer
    with_prior = run.objective.needs_prior(step)
    balance_due = bool(config.apt.balance_every) and step % config.apt.balance_every == 0
    attn_factor = run.objective.attn_factor(step, config.steps)

    # ATA: how likely each timestep bin is augmented; the bank grows before the draw [p_max reported].
    p_aug = _augmentation_chance(run)
    run.subject.bank.ensure_variants(run.subject.bank.wanted_variants(float(p_aug.max()), run.objective.p_max))
    batches = _draw(run, step, p_aug, preservation=False)
    preserved = _draw(run, step, torch.zeros_like(p_aug), preservation=True)

    outputs, norms, preservation = [], None, []
    run.optimizer.zero_grad(set_to_none=True)
    for micro, batch in enumerate(batches):
        with seeded(config.seed, "dropout", step, micro, device=run.device):
            output = run.training_step(batch, with_prior=with_prior, attn_factor=attn_factor)
            if balance_due and micro == 0:
                norms = _gradient_norms(run, output.parts)
            _backward(run, output.total / len(batches))
            if preserved:
                term = run.training_step.preservation(preserved[micro])
                _backward(run, config.data.prior_preservation_weight * term / len(batches))
                preservation.append(term.detach())
            outputs.append(output)

    # Clip, step, keep the identifier's norm; one indicator update per optimizer step.
    lr_factor = run.lr_factor(step)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr_factor
    grad_norm = _clip(run)
    _update(run)

    kept = _mean(preservation)
    total = _mean([output.total.detach() for output in outputs])
    assert total is not None
    return {
        "loss": total + config.data.prior_preservation_weight * (kept or 0.0),
        "denoising": _mean([output.denoising for output in outputs]),
        "stabilization": _mean([output.stabilization for output in outputs]),
        "alignment": _mean([output.alignment for output in outputs]),
        "prior_preservation": kept,
        "grad_norm": grad_norm,
        "lr": settings.learning_rate * lr_factor,
        "timestep": [int(t) for batch in batches for t in batch.timesteps],
        "gamma": run.indicator.gamma.tolist(),
        "grad_norm_terms": norms,
    }


def _augmentation_chance(run: Run) -> Tensor:
    """p_aug = min(gamma_b, p_max) per bin, from the committed gamma; zeros where the method does not augment."""
    gamma = run.indicator.gamma
    return gamma.clamp(max=run.objective.p_max) if run.objective.adaptive_augmentation else torch.zeros_like(gamma)


def _draw(run: Run, step: int, p_aug: Tensor, *, preservation: bool) -> list[Any]:
    stream, settings = run.preservation if preservation else run.subject, run.config.optimizer
    if stream is None:
        return []
    return stream.draw(
        p_aug,
        count=settings.batch_size * settings.accumulation,
        batch_size=settings.batch_size,
        num_timesteps=run.components.schedule.num_timesteps,
        seed=run.config.seed,
        step=step,
        mask_fill=run.objective.mask_fill,
        device=run.device,
    )


def _backward(run: Run, loss: Tensor) -> None:
    if not torch.isfinite(loss.detach()).item():
        raise TrainingDiverged(_diverged("loss", run))
    run.scaler.scale(loss).backward()


def _clip(run: Run) -> float | None:
    """The gradient's norm before clipping; None where fp16 overflowed and the scaler will skip the step."""
    parameters, limit = list(run.trainable.values()), run.config.optimizer.max_grad_norm
    run.scaler.unscale_(run.optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))
    if not math.isfinite(norm) and not run.scaler.is_enabled():
        raise TrainingDiverged(_diverged("gradient", run))
    return norm if math.isfinite(norm) else None


def _update(run: Run) -> None:
    """Move the weights and commit the indicator; whatever fails elsewhere, the step before can still be saved."""
    run.updating = True
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.identifier is not None:
        run.identifier.renormalize()
    run.indicator.commit()
    run.updating = False


def _diverged(what: str, run: Run) -> str:
    return (
        f"The {what} became infinite or not a number at step {run.steps_done + 1}: lower the learning rate, or train "
        "in fp32; what was saved before stays as it is."
    )


def _gradient_norms(run: Run, parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of each weighted term's gradient, without touching the gradients that train."""
    parameters = list(run.trainable.values())
    norms = {}
    for name, term in parts.items():
        grads = (
            torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        )
        squares = [grad.detach().float().square().sum().cpu() for grad in grads if grad is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


def _mean(values: list[Tensor | None] | list[Tensor]) -> float | None:
    present = [value for value in values if value is not None]
    return float(torch.stack(present).mean()) if present else None


def _resolve_device(device: str | torch.device | None) -> torch.device:
    try:
        resolved = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"The device {device} cannot be used here: choose cpu, or a device that torch finds."
        ) from error
    return resolved


def _open_folder(output_dir: str | Path | None, name: str, resume: bool) -> RunFolder | None:
    if output_dir is None:
        if resume:
            raise InputError("resume needs the folder of the run to go on with: give output_dir.")
        return None
    return RunFolder.open_existing(output_dir, name) if resume else RunFolder.open_new(output_dir, name)


def _begin(outcome: Outcome, resume: bool, record: Mapping[str, Any]) -> None:
    """Write the folder's first files, or put back what the newest snapshot holds and cut the log to it."""
    folder, run = outcome.folder, outcome.run
    assert folder is not None
    if resume and (state := read_newest_state(folder.snapshots)) is not None:
        restore_state(run, state)
    folder.start(outcome.digest, run.config, {"num_timesteps": run.components.schedule.num_timesteps, **record})
    drop_newer(folder.snapshots, run.steps_done)
    for line in folder.cut_log(run.steps_done):
        outcome.remember(line["loss"], line["gamma"])


def _ignore(event: Event) -> None:
    """The callback of a caller that gave none."""


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
    """Running out of memory is something a user can act on."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InputError(_OUT_OF_MEMORY) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise InputError(_OUT_OF_MEMORY) from error


_OUT_OF_MEMORY = (
    "Out of memory: lower the resolution or the batch size (raise accumulation instead), turn gradient checkpointing "
    "on, or lower the rank."
)

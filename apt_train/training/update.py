"""One optimizer step: draw, accumulate gradients, clip, move the weights, commit the indicator.

In: what happens between two resumable states. Not in: the losses (step.py), the log's numbers (step_values.py), when
snapshots are due (loop.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..data.batch import Batch
from ..errors import InputError
from ..rng import seeded
from ..run.optimizer_state import learning
from .memory import keep_to_the_recommended
from .out_of_memory import memory_in_words
from .running import Run
from .step_values import Collected, StepValues, event_fields
from .streams import Stream


class TrainingDiverged(InputError):
    """The loss or the gradient is no longer finite. The files of the last good snapshot are left alone."""


def optimizer_step(run: Run) -> dict[str, Any]:
    """Take one optimizer step and return the values of its `StepEvent`.

    Raises:
        TrainingDiverged: the loss or the gradient is not a finite number; the weights have not moved.
    """
    step, seen = run.steps_done, Collected()

    # ATA: the chance of augmentation per timestep bin; the bank grows before the draw [p_max reported].
    p_aug = _augmentation_chance(run)
    _grow_bank(run, p_aug)
    batches = _drawn(run, run.inputs.subject, p_aug)
    preserved = _drawn(run, run.inputs.preservation)

    run.optimizer.zero_grad(set_to_none=True)
    with learning(run.optimizer):
        _accumulate(run, batches, preserved, seen)

        # Clip, move, keep the identifier's norm; one indicator update per optimizer step [ours].
        factor = run.lr_factor(step)
        for group in run.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        values = seen.read(_clip(run), run.indicator.gamma, torch.cat([batch.timesteps for batch in batches]))
        _refuse(run, values)
        _move(run)
    _commit(run)
    keep_to_the_recommended(run.device)
    run.gamma = values.gamma
    return {
        **event_fields(run, values),
        "lr": run.optimizer.param_groups[0]["lr"],
    }


def dry_passes(run: Run) -> None:
    """Run the next step's passes, forward and backward. Leaves only gradients and pending observations.

    No picture is augmented, because the bank may not have the variants yet.
    """
    _accumulate(run, _drawn(run, run.inputs.subject), _drawn(run, run.inputs.preservation), Collected())


def _accumulate(run: Run, batches: list[Batch], preserved: list[Batch], seen: Collected) -> None:
    """Forward and backward, batch by batch; the gradients sum to those of one large batch."""
    with_prior, config = run.plan.objective.needs_prior(run.steps_done), run.config
    progress = run.steps_done / max(1, config.steps - 1) if config.reads_total_steps else None
    for micro, batch in enumerate(batches):
        draws = seeded(run.config.seed, "dropout", run.steps_done, micro, device=run.device)
        with draws, run.compiled.used():
            with run.adapter.at(batch.timesteps):
                output = run.training_step(batch, with_prior=with_prior, progress=progress)
                seen.add_balance(run, output.weighted)
                seen.add_pass(output)
                _backward(run, output.total / len(batches))
            if preserved:
                _preservation_pass(run, preserved[micro], len(batches), seen)


def _augmentation_chance(run: Run) -> Tensor:
    """p_aug = min(gamma_b, p_max) per bin, from the committed gamma; zeros if the method does not augment."""
    if run.gamma is None:
        run.gamma = run.indicator.gamma.tolist()
    objective, gamma = run.plan.objective, torch.tensor(run.gamma, dtype=torch.float64)
    return gamma.clamp(max=objective.p_max) if objective.adaptive_augmentation else torch.zeros_like(gamma)


def _grow_bank(run: Run, p_aug: Tensor) -> None:
    """InputError: the VAE does not fit beside the UNet, which stepping down to a leaner mode would not change."""
    refusal = InputError(
        "Out of memory where the VAE encodes augmented pictures beside the network: lower the resolution, choose "
        "identifier_mode word, or switch adaptive_augmentation off."
    )
    with memory_in_words(refusal):
        run.bank.ensure_variants(run.bank.wanted_variants(float(p_aug.max()), run.plan.objective.p_max))


def _drawn(run: Run, stream: Stream | None, p_aug: Tensor | None = None) -> list[Batch]:
    """`p_aug`: the chance of augmentation per bin; None: none, as always for prior-preservation pictures."""
    if stream is None:
        return []
    size, chance = run.config.optimizer.batch_size, torch.zeros(1) if p_aug is None else p_aug
    count = size * run.config.optimizer.accumulation
    return stream.draw(chance, run.steps_done, count=count, batch_size=size, device=run.device)


def _preservation_pass(run: Run, batch: Batch, parts: int, seen: Collected) -> None:
    with run.adapter.at(batch.timesteps):
        term, kind = run.training_step.preservation(batch), run.preservation_term
        weighted = kind.weight * term
        seen.add_balance(run, {kind.name: weighted})
        seen.add_term(kind.name, term)
        _backward(run, weighted / parts)


def _backward(run: Run, loss: Tensor) -> None:
    run.scaler.scale(loss).backward()


def _clip(run: Run) -> Tensor:
    """The gradient's norm before clipping."""
    parameters, limit = list(run.trainable.values()), run.config.optimizer.max_grad_norm
    run.scaler.unscale_(run.optimizer)
    return torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)


def _refuse(run: Run, values: StepValues) -> None:
    """InputError or TrainingDiverged if a value is not finite. fp16 overflow in the gradient is let through."""
    if not math.isfinite(values.prior_error):
        raise InputError(
            "The model's own prediction is not a number in this precision: train in bf16 or fp32, or check it."
        )
    if not math.isfinite(values.total + values.terms.get(run.preservation_term.name, 0.0)):
        raise TrainingDiverged(_diverged("loss", run))
    # With a scale below 1 it was not our scaling that overflowed, and every following step would be skipped too.
    skips = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    if not (math.isfinite(values.grad_norm) or skips):
        raise TrainingDiverged(_diverged("gradient", run))


def _move(run: Run) -> None:
    """Until this is called, the last step can be saved."""
    run.updating = True
    with seeded(run.config.seed, "optimizer", run.steps_done, device=run.device):
        run.scaler.step(run.optimizer)
    run.scaler.update()


def _commit(run: Run) -> None:
    """Keep the identifier's norm, commit the indicator, count the step."""
    if run.inputs.identifier is not None:
        run.inputs.identifier.renormalize()
    run.indicator.commit()
    run.steps_done += 1
    run.updating = False


def _diverged(what: str, run: Run) -> str:
    finer = "" if run.plan.dtype == torch.float32 else ", or train in fp32"
    return (
        f"The {what} became infinite or not a number at step {run.steps_done + 1}: lower the learning rate{finer}; "
        "what was saved before stays as it is."
    )

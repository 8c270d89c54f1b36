"""One optimizer step: draw, accumulate gradients, clip, move the weights, commit the indicator.

In: what happens between two states that can be resumed from. Not in: the losses (step.py), the run around it (loop.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..data.batch import Batch
from ..errors import InputError
from ..rng import seeded
from .setup import Run
from .step import StepOutput


class TrainingDiverged(InputError):
    """The loss or the gradient is not a number any more; the files of the last good snapshot stay as they are."""


@dataclass
class _Seen:
    """Scalars of an optimizer step's passes, detached."""

    total: list[Tensor] = field(default_factory=list[Tensor])
    terms: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    def add(self, total: Tensor, raw: Mapping[str, Tensor]) -> None:
        self.total.append(total.detach())
        for name, value in raw.items():
            self.terms.setdefault(name, []).append(value)


def optimizer_step(run: Run) -> dict[str, Any]:
    """Take one optimizer step; the values of its `StepEvent`.

    Raises:
        TrainingDiverged: the loss or the gradient is not a finite number; the weights have not moved.
    """
    step, seen = run.steps_done, _Seen()

    # ATA: how likely each timestep bin is augmented; the bank grows before the draw [p_max reported].
    p_aug = _augmentation_chance(run)
    _grow_bank(run, p_aug)
    batches = _draw(run, p_aug)
    preserved = _draw_preservation(run)

    run.optimizer.zero_grad(set_to_none=True)
    norms = None
    for micro, batch in enumerate(batches):
        with seeded(run.config.seed, "dropout", step, micro, device=run.device):
            with run.adapter.at(batch.timesteps):
                output = _subject_pass(run, batch)
                if micro == 0 and _balance_due(run):
                    norms = _gradient_norms(run, output.parts)
                seen.add(output.total, output.raw)
                _backward(run, output.total / len(batches))
            if preserved:
                _preservation_pass(run, preserved[micro], len(batches), seen)

    # Clip, move, keep the identifier's norm; one indicator update per optimizer step [ours].
    factor = run.lr_factor(step)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    norm = _clip(run)
    _update(run)
    return {
        **_values(run, seen),
        "grad_norm": norm,
        "lr": run.optimizer.param_groups[0]["lr"],
        "timestep": [int(t) for batch in batches for t in batch.timesteps],
        "gamma": run.indicator.gamma.tolist(),
        "grad_norm_terms": norms,
    }


def _augmentation_chance(run: Run) -> Tensor:
    """p_aug = min(gamma_b, p_max) per bin, from the committed gamma; zeros where the method does not augment."""
    gamma = run.indicator.gamma
    return gamma.clamp(max=run.objective.p_max) if run.objective.adaptive_augmentation else torch.zeros_like(gamma)


def _grow_bank(run: Run, p_aug: Tensor) -> None:
    """InputError: there is no room for the VAE beside the UNet, which a smaller step would not change."""
    bank = run.subject.bank
    try:
        bank.ensure_variants(bank.wanted_variants(float(p_aug.max()), run.objective.p_max))
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            "Out of memory where the VAE encodes augmented pictures beside the UNet: lower the resolution, choose "
            "identifier_mode word, whose text encoders leave the device, or switch adaptive_augmentation off."
        ) from error


def _draw(run: Run, p_aug: Tensor) -> list[Batch]:
    return run.subject.draw(p_aug, **_draw_arguments(run))


def _draw_preservation(run: Run) -> list[Batch]:
    """Prior-preservation pictures are never augmented."""
    if run.preservation is None:
        return []
    return run.preservation.draw(torch.zeros(1), **_draw_arguments(run))


def _draw_arguments(run: Run) -> dict[str, Any]:
    settings = run.config.optimizer
    return {
        "count": settings.batch_size * settings.accumulation,
        "batch_size": settings.batch_size,
        "num_timesteps": run.components.schedule.num_timesteps,
        "seed": run.config.seed,
        "step": run.steps_done,
        "mask_fill": run.objective.mask_fill,
        "device": run.device,
    }


def _subject_pass(run: Run, batch: Batch) -> StepOutput:
    step = run.steps_done
    progress = step / max(1, run.config.steps - 1)
    return run.training_step(batch, with_prior=run.objective.needs_prior(step), progress=progress)


def _preservation_pass(run: Run, batch: Batch, parts: int, seen: _Seen) -> None:
    with run.adapter.at(batch.timesteps):
        term = run.training_step.preservation(batch)
        kind = run.preservation_term
        seen.terms.setdefault(kind.name, []).append(term.detach())
        _backward(run, kind.weight * term / parts)


def _backward(run: Run, loss: Tensor) -> None:
    if not torch.isfinite(loss.detach()).item():
        raise TrainingDiverged(_diverged("loss", run))
    run.scaler.scale(loss).backward()


def _clip(run: Run) -> float | None:
    """The gradient's norm before clipping; None where fp16 overflowed and the scaler will skip the step."""
    parameters, limit = list(run.trainable.values()), run.config.optimizer.max_grad_norm
    run.scaler.unscale_(run.optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))
    if math.isfinite(norm):
        return norm
    if run.scaler.get_scale() >= 1 and run.scaler.is_enabled():
        return None
    # Without a scale above one it was no overflow of ours, and the next steps would be skipped like this one.
    raise TrainingDiverged(_diverged("gradient", run))


def _update(run: Run) -> None:
    """Move the weights, commit the indicator, count the step: whatever fails before, the last step can be saved."""
    run.updating = True
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.identifier is not None:
        run.identifier.renormalize()
    run.indicator.commit()
    run.steps_done += 1
    run.updating = False


def _diverged(what: str, run: Run) -> str:
    finer = "" if run.dtype == torch.float32 else ", or train in fp32"
    return (
        f"The {what} became infinite or not a number at step {run.steps_done + 1}: lower the learning rate{finer}; "
        "what was saved before stays as it is."
    )


# -- what is told


def _balance_due(run: Run) -> bool:
    """Every `balance_every` steps; under a lazy prior at the next step that has all terms."""
    every, lazy, step = run.config.apt.balance_every, run.objective.lazy_prior, run.steps_done
    if not every or step % lazy:
        return False
    return step % every < lazy  # the first step with a prior pass at or after a multiple


def _gradient_norms(run: Run, parts: Mapping[str, Tensor]) -> dict[str, float] | None:
    """Norm of each weighted term's gradient, without touching the gradients that train; None where one overflows.

    Scaled as in training: under fp16 plain gradients would underflow.
    """
    parameters, scale = list(run.trainable.values()), run.scaler.get_scale()
    norms: dict[str, float] = {}
    for name, term in parts.items():
        scaled = run.scaler.scale(term)
        grads = _gradients(scaled, parameters) if term.requires_grad else ()
        squares = [(grad.detach().float() / scale).square().sum().cpu() for grad in grads if grad is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms if all(map(math.isfinite, norms.values())) else None


def _gradients(loss: Tensor, parameters: list[Parameter]) -> Sequence[Tensor | None]:
    """None: of a parameter that the loss does not depend on. torch's own types leave it out."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _values(run: Run, seen: _Seen) -> dict[str, Any]:
    """A term that was not computed in this step is None."""
    terms = {term.name: _mean(seen.terms.get(term.name, ())) for term in run.terms}
    kept, total = terms.get(run.preservation_term.name), _mean(seen.total)
    assert total is not None
    if kept is not None:
        total += run.preservation_term.weight * kept
    return {"loss": total, "terms": terms}


def _mean(values: Sequence[Tensor]) -> float | None:
    return float(torch.stack(list(values)).mean()) if values else None

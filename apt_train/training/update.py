"""One optimizer step: draw, accumulate gradients, clip, move the weights, commit the indicator.

In: what happens between two resumable states. Not in: the losses (step.py), when snapshots are due (loop.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from ..data.batch import Batch
from ..errors import InputError
from ..rng import seeded
from ..run.optimizer_state import learning
from .memory import keep_to_the_recommended
from .out_of_memory import memory_in_words
from .running import Run
from .step import StepOutput
from .streams import Stream


class TrainingDiverged(InputError):
    """The loss or the gradient is no longer finite. The files of the last good snapshot are left alone."""


_Key = tuple[str, str]  # what a number is, and the term it belongs to
_TOTAL, _PRIOR, _NORM = ("total", ""), ("prior error", ""), ("gradient norm", "")
_TERM, _BALANCE = "term", "balance"  # the raw value of each, and the gradient norm of the weighted one


class _Seen:
    """Collects a step's scalars, detached and on their device: reading each would make the CPU wait for the GPU."""

    def __init__(self) -> None:
        self.values: dict[_Key, list[Tensor]] = {}

    def add(self, key: _Key, value: Tensor) -> None:
        self.values.setdefault(key, []).append(value.detach())

    def add_pass(self, output: StepOutput) -> None:
        self.add(_TOTAL, output.total)
        for name, value in output.raw.items():
            self.add((_TERM, name), value)
        if output.prior_error is not None:
            self.add(_PRIOR, output.prior_error)

    def read(self, gamma: Tensor, timesteps: Tensor) -> tuple[dict[_Key, float], list[float], list[int]]:
        """Means by key and the values of both tensors, in one transfer: a step's only read from the device."""
        means = torch.stack([torch.stack(values).mean().float() for values in self.values.values()])
        joined = torch.cat([means.to(gamma.device).double(), gamma, timesteps.to(gamma.device).double()])
        whole = cast("list[float]", joined.tolist())
        split = len(means) + len(gamma)
        found = dict(zip(self.values, whole[: len(means)], strict=True))
        return found, whole[len(means) : split], [int(value) for value in whole[split:]]


def optimizer_step(run: Run) -> dict[str, Any]:
    """Take one optimizer step and return the values of its `StepEvent`.

    Raises:
        TrainingDiverged: the loss or the gradient is not a finite number; the weights have not moved.
    """
    step, seen = run.steps_done, _Seen()

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
        seen.add(_NORM, _clip(run))
        values, gamma, timesteps = seen.read(run.indicator.gamma, torch.cat([batch.timesteps for batch in batches]))
        _refuse(run, values)
        _move(run)
    _commit(run)
    keep_to_the_recommended(run.device)
    run.gamma = gamma
    norm = values[_NORM]
    return {
        **_loss_and_terms(run, values),
        "grad_norm": norm if math.isfinite(norm) else None,
        "lr": run.optimizer.param_groups[0]["lr"],
        "timestep": timesteps,
        "level": _levels(run, timesteps),
        "gamma": list(gamma),  # a copy for the caller: the next step uses ours
        "grad_norm_terms": _balance(values),
    }


def passes(run: Run) -> None:
    """Run the next step's passes, forward and backward. Leaves only gradients and pending observations.

    No picture is augmented, because the bank may not have the variants yet.
    """
    _accumulate(run, _drawn(run, run.inputs.subject), _drawn(run, run.inputs.preservation), _Seen())


def _accumulate(run: Run, batches: list[Batch], preserved: list[Batch], seen: _Seen) -> None:
    """Forward and backward, batch by batch; the gradients sum to those of one large batch."""
    with_prior, progress = run.plan.objective.needs_prior(run.steps_done), run.steps_done / max(1, run.config.steps - 1)
    for micro, batch in enumerate(batches):
        draws = seeded(run.config.seed, "dropout", run.steps_done, micro, device=run.device)
        with draws, run.compiled.used():
            with run.adapter.at(batch.timesteps):
                output = run.training_step(batch, with_prior=with_prior, progress=progress)
                if micro == 0 and _balance_due(run):
                    _see_gradient_norms(run, output.weighted, seen)
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


def _preservation_pass(run: Run, batch: Batch, parts: int, seen: _Seen) -> None:
    with run.adapter.at(batch.timesteps):
        term, kind = run.training_step.preservation(batch), run.preservation_term
        weighted = kind.weight * term
        if (_TERM, kind.name) not in seen.values and _balance_due(run):
            _see_gradient_norms(run, {kind.name: weighted}, seen)
        seen.add((_TERM, kind.name), term)
        _backward(run, weighted / parts)


def _backward(run: Run, loss: Tensor) -> None:
    run.scaler.scale(loss).backward()


def _clip(run: Run) -> Tensor:
    """The gradient's norm before clipping."""
    parameters, limit = list(run.trainable.values()), run.config.optimizer.max_grad_norm
    run.scaler.unscale_(run.optimizer)
    return torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)


def _refuse(run: Run, values: Mapping[_Key, float]) -> None:
    """InputError or TrainingDiverged if a value is not finite. fp16 overflow in the gradient is let through."""
    if not math.isfinite(values.get(_PRIOR, 0.0)):
        raise InputError(
            "The model's own prediction is not a number in this precision: train in bf16 or fp32, or check it."
        )
    if not all(math.isfinite(values.get(key, 0.0)) for key in (_TOTAL, (_TERM, run.preservation_term.name))):
        raise TrainingDiverged(_diverged("loss", run))
    # With a scale below 1 it was not our scaling that overflowed, and every following step would be skipped too.
    skips = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    if not (math.isfinite(values[_NORM]) or skips):
        raise TrainingDiverged(_diverged("gradient", run))


def _move(run: Run) -> None:
    """Until this is called, the last step can be saved."""
    run.updating = True
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


# -- values for the log


def _balance_due(run: Run) -> bool:
    """Every `balance_every` steps; under a lazy prior at the next step that computes all terms."""
    every, lazy, step = run.config.apt.balance_every, run.plan.objective.lazy_prior, run.steps_done
    return every > 0 and step % lazy == 0 and step % every < lazy  # the first prior pass at or after a multiple


def _see_gradient_norms(run: Run, weighted: Mapping[str, Tensor], seen: _Seen) -> None:
    """The gradient norm of each weighted term, without touching the gradients that train.

    Scaled as in training, because plain gradients would underflow in fp16.
    """
    parameters, scale = list(run.trainable.values()), run.scaler.get_scale()
    for name, term in weighted.items():
        scaled = run.scaler.scale(term)
        grads = _gradients(scaled, parameters) if term.requires_grad else ()
        squares = [(grad.detach().float() / scale).square().sum() for grad in grads if grad is not None]
        norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=term.device)
        seen.add((_BALANCE, name), norm)


def _gradients(loss: Tensor, parameters: list[Parameter]) -> Sequence[Tensor | None]:
    """None for a parameter the loss does not depend on, which torch's own types do not admit."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _balance(values: Mapping[_Key, float]) -> dict[str, float] | None:
    """Gradient norms per term; None if not due in this step, or if one overflowed."""
    norms = {name: norm for (what, name), norm in values.items() if what == _BALANCE}
    return norms if norms and all(map(math.isfinite, norms.values())) else None


def _levels(run: Run, timesteps: list[int]) -> list[float]:
    """The noise level of each sample, in [0, 1]."""
    levels = run.components.schedule.level(torch.tensor(timesteps)).double()
    return [round(level, 6) for level in cast("list[float]", levels.tolist())]


def _loss_and_terms(run: Run, values: Mapping[_Key, float]) -> dict[str, Any]:
    """The step's loss and terms. A term that was not computed in this step is None."""
    terms = {term.name: values.get((_TERM, term.name)) for term in run.terms}
    kept, total = terms.get(run.preservation_term.name), values[_TOTAL]
    if kept is not None:
        total += run.preservation_term.weight * kept
    return {"loss": total, "terms": terms}

"""A step's numbers for the log: collected on the device, read from it once.

In: means over the passes of a step, gradient norms by term. Not in: the log's file (run/log.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from .running import Run
from .step import StepOutput

_Key = tuple[str, str]  # what a number is, and the term it belongs to
_TOTAL, _PRIOR, _NORM = ("total", ""), ("prior error", ""), ("gradient norm", "")
_TERM, _BALANCE = "term", "balance"  # the raw value of each, and the gradient norm of the weighted one


@dataclass(frozen=True)
class StepValues:
    """What a step came to, as plain numbers; terms by name, those alone that were computed."""

    total: float
    terms: dict[str, float]
    prior_error: float  # 0 without a prior pass
    grad_norm: float  # before clipping
    balance: dict[str, float]  # gradient norms of the weighted terms; empty if not due
    gamma: list[float]  # per bin
    timesteps: list[int]  # of every sample


class Collected:
    """Scalars of a step, detached and on their device: reading each would make the CPU wait for the GPU."""

    def __init__(self) -> None:
        self._values: dict[_Key, list[Tensor]] = {}

    def _add(self, key: _Key, value: Tensor) -> None:
        self._values.setdefault(key, []).append(value.detach())

    def add_pass(self, output: StepOutput) -> None:
        self._add(_TOTAL, output.total)
        for name, value in output.raw.items():
            self.add_term(name, value)
        if output.prior_error is not None:
            self._add(_PRIOR, output.prior_error)

    def add_term(self, name: str, raw: Tensor) -> None:
        self._add((_TERM, name), raw)

    def add_balance(self, run: Run, weighted: Mapping[str, Tensor]) -> None:
        """The gradient norm of each weighted term, if due, in a step's first pass; what trains is not touched.

        Scaled as in training, because plain gradients would underflow in fp16.
        """
        if not _balance_due(run):
            return
        parameters, scale = list(run.trainable.values()), run.scaler.get_scale()
        for name, term in weighted.items():
            if (_BALANCE, name) in self._values:
                continue
            scaled = run.scaler.scale(term)
            grads = _gradients(scaled, parameters) if term.requires_grad else ()
            squares = [(grad.detach().float() / scale).square().sum() for grad in grads if grad is not None]
            norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=term.device)
            self._add((_BALANCE, name), norm)

    def read(self, grad_norm: Tensor, gamma: Tensor, timesteps: Tensor) -> StepValues:
        """Means, and the values of these tensors, in one transfer: a step's only read from the device."""
        self._add(_NORM, grad_norm)
        means = torch.stack([torch.stack(values).mean().float() for values in self._values.values()])
        joined = torch.cat([means.to(gamma.device).double(), gamma, timesteps.to(gamma.device).double()])
        whole = cast("list[float]", joined.tolist())
        split = len(means) + len(gamma)
        found = dict(zip(self._values, whole[: len(means)], strict=True))
        return StepValues(
            total=found[_TOTAL],
            terms={name: value for (what, name), value in found.items() if what == _TERM},
            prior_error=found.get(_PRIOR, 0.0),
            grad_norm=found[_NORM],
            balance={name: value for (what, name), value in found.items() if what == _BALANCE},
            gamma=whole[len(means) : split],
            timesteps=[int(value) for value in whole[split:]],
        )


def _balance_due(run: Run) -> bool:
    """Every `balance_every` steps; under a lazy prior at the next step that computes all terms."""
    every, lazy, step = run.config.apt.balance_every, run.plan.objective.lazy_prior, run.steps_done
    return every > 0 and step % lazy == 0 and step % every < lazy  # the first prior pass at or after a multiple


def event_fields(run: Run, values: StepValues) -> dict[str, Any]:
    """A step's values as fields of its `StepEvent`. No gradient norms per term if not due, or if one overflowed."""
    measured = bool(values.balance) and all(map(math.isfinite, values.balance.values()))
    return {
        **_loss_and_terms(run, values),
        "grad_norm": values.grad_norm if math.isfinite(values.grad_norm) else None,
        "timestep": values.timesteps,
        "level": _levels(run, values.timesteps),
        "gamma": list(values.gamma),  # a copy for the caller: the next step uses ours
        "grad_norm_terms": values.balance if measured else None,
    }


def _gradients(loss: Tensor, parameters: list[Parameter]) -> Sequence[Tensor | None]:
    """None for a parameter the loss does not depend on, which torch's own types do not admit."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _levels(run: Run, timesteps: list[int]) -> list[float]:
    """The noise level of each sample, in [0, 1]."""
    levels = run.components.schedule.level(torch.tensor(timesteps)).double()
    return [round(level, 6) for level in cast("list[float]", levels.tolist())]


def _loss_and_terms(run: Run, values: StepValues) -> dict[str, Any]:
    """The step's loss and terms. A term that was not computed in this step is None."""
    terms = {term.name: values.terms.get(term.name) for term in run.terms}
    kept, total = terms.get(run.preservation_term.name), values.total
    if kept is not None:
        total += run.preservation_term.weight * kept
    return {"loss": total, "terms": terms}

"""What is minimised: a list of terms, made from the settings by `terms_of`.

A term names the layers it needs captured, reads them from both passes, and returns a raw and a weighted value. To add
one, write it here or in its own file, and list it in `terms_of`. A weighting is a function whose result multiplies the
data term's per-sample loss; several multiply.

In: the terms, and which a method has. Not in: the formulas (losses.py), when the prior pass runs (objective.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Protocol

from torch import Tensor

from ..config import AttnSchedule, Layers, StabilizationMode, TrainConfig
from .losses import Moments, alignment_loss, dco_loss, moment_loss, squared_error
from .passes import Pass, Passes


class Term(Protocol):
    """One summand of the loss. `features`, `attention`: the part of the UNet whose layers it needs captured."""

    @property
    def name(self) -> str:
        """Its name in log, events and report: lower-case letters and `_`."""
        ...

    @property
    def title(self) -> str:
        """Its name in the report's figures."""
        ...

    @property
    def colour(self) -> str:
        """Its colour in the report's figures, `#rrggbb`."""
        ...

    @property
    def reads_prior(self) -> bool:
        """Whether it needs the prior pass; if so, steps without one skip it."""
        ...

    @property
    def reads_gamma(self) -> bool:
        """Whether it needs an up-to-date gamma, for which the prior pass runs."""
        ...

    @property
    def features(self) -> Layers | None: ...

    @property
    def attention(self) -> Layers | None: ...

    @property
    def layers_setting(self) -> str:
        """The setting that names this part; empty: it needs no layers."""
        ...

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """Raw value, for the log, and weighted value, for the total: scalars."""
        ...


# -- the data term and its weightings


@dataclass(frozen=True)
class Weighting:
    """A factor on each sample's denoising loss: `factor` returns (N,) or a number."""

    factor: Callable[[Passes], Tensor]
    reads_gamma: bool = False


ADAPTIVE = Weighting(lambda passes: 1 - passes.gamma, reads_gamma=True)  # ATA: L_aptDM = (1 - gamma) L_DM [reported]


@dataclass(frozen=True)
class Denoising:
    """L_DM, against the model's own prediction target, masked and weighted [paper; the mask is ours].

    `error`: of (prediction, target, mask) per sample, (N,).
    """

    weightings: tuple[Weighting, ...] = ()
    error: Callable[[Tensor, Tensor, Tensor | None], Tensor] = squared_error
    name: str = "denoising"
    title: str = "Denoising"
    colour: str = "#2a6fbb"
    reads_prior: bool = False
    features: None = None
    attention: None = None
    layers_setting: str = ""

    @property
    def reads_gamma(self) -> bool:
        return any(weighting.reads_gamma for weighting in self.weightings)

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        loss = self.error(passes.tuned.prediction, passes.target, passes.batch.mask)  # (N,)
        factors = [weighting.factor(passes) for weighting in self.weightings]
        return loss.mean().detach(), reduce(mul, [*factors, loss]).mean()


@dataclass(frozen=True)
class Dco:
    """DCO's loss in place of the data term (arXiv 2402.12004); the raw value is the tuned denoising loss."""

    beta: float
    name: str = "denoising"
    title: str = "Denoising"
    colour: str = "#2a6fbb"
    reads_prior: bool = True
    reads_gamma: bool = False
    features: None = None
    attention: None = None
    layers_setting: str = ""

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        target, mask = passes.target, passes.batch.mask
        tuned, prior = (squared_error(each.prediction, target, mask) for each in passes.compared)
        return tuned.mean().detach(), dco_loss(tuned, prior, self.beta)


# -- the regularisers: under a lazy prior only in every k-th step, and there k times as strong [ours]


@dataclass(frozen=True)
class Stabilization:
    """RS: dist_weight (L_mu + L_sigma) on self-attention features [paper; distance and scale ours]."""

    weight: float
    features: Layers = "up"
    mode: StabilizationMode = "relative"
    name: str = "stabilization"
    title: str = "Representation stabilization"
    colour: str = "#e07b00"
    reads_prior: bool = True
    reads_gamma: bool = False
    attention: None = None
    layers_setting: str = "dist_layers"

    def read(self, one: Pass) -> list[Moments]:
        return one.moments(self.features)

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        mu, sigma = moment_loss(*passes.read_by(self), self.mode)
        return (mu + sigma).detach(), passes.lazy_prior * self.weight * (mu + sigma)


@dataclass(frozen=True)
class Alignment:
    """AA: attn_weight L_attn on cross-attention maps [paper; distance and schedules ours]."""

    weight: float
    attention: Layers = "up"
    schedule: AttnSchedule = "constant"
    name: str = "alignment"
    title: str = "Attention alignment"
    colour: str = "#1a9850"
    reads_prior: bool = True
    features: None = None
    layers_setting: str = "attn_layers"

    @property
    def reads_gamma(self) -> bool:
        return self.schedule == "indicator"

    def read(self, one: Pass) -> list[Tensor]:
        return one.maps(self.attention)

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        tuned, prior = passes.read_by(self)
        raw = alignment_loss(tuned, prior)
        term = alignment_loss(tuned, prior, passes.gamma) if self.reads_gamma else raw
        share = passes.progress if self.schedule == "linear" else 1.0
        return raw.detach(), passes.lazy_prior * self.weight * share * term


@dataclass(frozen=True)
class Preservation:
    """DreamBooth's prior preservation: the denoising loss on pictures of the class, in passes of their own."""

    weight: float = 1.0
    name: str = "prior_preservation"
    title: str = "Prior preservation"
    colour: str = "#8c56a8"


# -- which terms a method has


def terms_of(config: TrainConfig) -> tuple[Term, ...]:
    """The terms of a run, the data term first. APT's switches apply only under `apt`; a weight of 0 drops a term.

    L = (1 - gamma) L_DM + dist_weight (L_mu + L_sigma) + attn_weight L_attn [reported]; DreamBooth and T-LoRA keep
    only the first term, with gamma at 0.
    """
    apt = config.apt
    if config.method == "dco":
        return (Dco(config.dco_beta),)
    weightings = [ADAPTIVE] if config.method == "apt" and apt.adaptive_loss_weight else []
    data = Denoising(tuple(weightings))
    if config.method != "apt":
        return (data,)
    terms: list[Term] = [data]
    if apt.stabilization and apt.dist_weight > 0:
        terms.append(Stabilization(apt.dist_weight, apt.dist_layers, apt.dist_mode))
    if apt.alignment and apt.attn_weight > 0:
        terms.append(Alignment(apt.attn_weight, apt.attn_layers, apt.attn_schedule))
    return tuple(terms)

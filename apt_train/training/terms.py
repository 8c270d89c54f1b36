"""What is minimised: a list of terms, made from the settings by `terms_of`.

A term names the layers it needs captured, reads them from both passes, and returns a raw and a weighted value. To add
one, write it here or in its own file, and list it in `terms_of`. A weighting is a function whose result multiplies the
data term's per-sample loss; several multiply.

In: the terms, and which a method has. Not in: the formulas (losses.py), when the prior pass runs (objective.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import mul
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..config import AttnSchedule, Layers, StabilizationMode, TrainConfig
from ..data.batch import Batch
from ..families.network import Process
from ..text.conditioning import Conditioning
from .capture import Capture, Captured, attention_maps, recomputed
from .indicator import OverfitIndicator
from .losses import Moments, alignment_loss, dco_loss, moment_loss, moments, squared_error


@dataclass
class Pass:
    """One forward pass of the network."""

    prediction: Tensor  # float32 (N, C, h, w)
    captured: Captured
    conditioning: Conditioning
    capture: Capture  # the one that recorded this pass
    saves_memory: bool = False  # recompute maps and moments in the backward pass
    readings: dict[str, Any] = field(default_factory=dict[str, Any])  # what terms have already read, by their names

    def read_and_free(self, terms: Sequence[Term]) -> None:
        """Let the terms read this pass, then free the captured layers, which are a hundred times as large.

        They are kept if any term that needs them has no `read`.
        """
        capturing = [term for term in terms if term.features or term.attention]
        self.readings = {term.name: term.read(self) for term in capturing if isinstance(term, Reader)}
        if len(self.readings) == len(capturing):
            self.captured = Captured()

    @property
    def _saves(self) -> bool:
        return self.saves_memory and self.prediction.requires_grad

    def features(self, layers: Layers) -> list[Tensor]:
        """Self-attention outputs (N, positions, channels) of a part of the network."""
        return [kept for name, kept in self.captured.features.items() if name in self.capture.features[layers]]

    def moments(self, layers: Layers) -> list[Moments]:
        """Mean and standard deviation of those features over positions, float32 (N, channels) each."""
        # With float32 features nothing would be saved: autograd would keep only the features, which exist anyway.
        return [
            recomputed(moments, kept) if self._saves and kept.dtype != torch.float32 else moments(kept)
            for kept in self.features(layers)
        ]

    def maps(self, layers: Layers) -> list[Tensor]:
        """Cross-attention maps (N, heads, positions, columns), columns matched by token, of a part of the UNet."""
        text, names = self.conditioning, self.capture.attention[layers]
        return attention_maps(
            self.captured, text.columns, text.num_columns, mask=text.mask, names=names, save_memory=self._saves
        )


@dataclass
class Passes:
    """What a term may read: both passes over a batch, and the run's progress."""

    batch: Batch
    target: Tensor  # what the model should have predicted, (N, C, h, w)
    schedule: Process
    tuned: Pass
    prior: Pass | None  # None: skipped in this step (lazy_prior), or not needed
    indicator: OverfitIndicator  # has already observed this pass
    adapter: Mapping[str, Tensor]  # its weights by name, float32; a term may depend on them alone
    predict: Callable[[list[str], bool], Tensor]  # (captions, tuned?) -> a further pass on the same noisy latents
    progress: float = 1.0  # 0 in the run's first step, 1 in its last
    lazy_prior: int = 1  # the prior pass runs in every k-th step

    @property
    def gamma(self) -> Tensor:
        """The indicator of each sample's timestep bin, float32 (N,)."""
        return self.indicator.gamma_at(self.batch.timesteps)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio at each sample's timestep, float32 (N,), found by noising a latent and a noise of 1."""
        times = self.batch.timesteps
        one = torch.ones(len(times), 1, 1, 1, device=times.device)
        signal, noise = self.schedule.add_noise(one, 0 * one, times), self.schedule.add_noise(0 * one, one, times)
        return (signal / noise).square().flatten()

    @property
    def compared(self) -> tuple[Pass, Pass]:
        """The tuned pass and the prior's, for a term with `reads_prior`."""
        assert self.prior is not None, "the prior pass did not run"
        return self.tuned, self.prior

    def read_by(self, term: Reader) -> tuple[Any, Any]:
        """A term's readings of the tuned and the prior pass; the latter's may have been taken before it was freed."""
        tuned, prior = self.compared
        return term.read(tuned), prior.readings[term.name] if term.name in prior.readings else term.read(prior)


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


@runtime_checkable
class Reader(Protocol):
    """A term whose `read` takes all it needs from a pass, so that the prior's captured layers can be freed."""

    @property
    def name(self) -> str: ...

    def read(self, one: Pass) -> Any: ...


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

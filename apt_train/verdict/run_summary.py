"""A run's log summarised in numbers: indicator, loss trend, balance of the terms.

In: every number of the report, each with its rule. Not in: words about them (`words`), pictures (`report`). The rules
(what counts as near 1, as falling, as most) are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..config import TrainConfig
from ..settings_field import all_said, flat_values
from ..wording import levels_named
from .run_log import DRIFT, Floats, RunLog, moving_average

Trend = Literal["falling", "flat", "rising", "unknown"]

NEAR_ONE = 0.9  # where 1 - gamma has reduced the denoising loss tenfold
FEWEST_STEPS = 40  # with fewer, no trend stands out from the chance of the draws
RISE = 3.0  # the drift ratio has risen at this many times its lowest: other prompts change (ours, docs/benchmark.md)
SURE = 2.0  # standard errors by which two quarters must differ


@dataclass(frozen=True)
class BinSummary:
    """One bin of the indicator: a part of the noise levels."""

    bin: int
    levels: tuple[float, float]  # of noise, 0 clean and 1 pure
    samples: int  # samples trained on in this bin
    gamma: float  # mean over the closing window
    near_one_since: int | None  # step since which it is at least NEAR_ONE; None: `gamma` is below

    @property
    def range(self) -> str:
        return levels_named(*self.levels, round(1 / (self.levels[1] - self.levels[0])))


@dataclass(frozen=True)
class TermSummary:
    """One loss term's mean over the run's first and last quarter; raw, except that the total is weighted."""

    first_quarter: float
    last_quarter: float


@dataclass(frozen=True)
class BalanceSummary:
    """One weighted term's gradient norm per step (median over the later half of measurements), and its share."""

    norm: float
    share: float


@dataclass(frozen=True)
class WeightSetting:
    """The setting that weighs a term."""

    name: str
    value: float


@dataclass(frozen=True)
class DriftSummary:
    """How far one snapshot has moved from the prior, and how much of that is unrelated to the subject."""

    step: int
    subject: float  # mean squared difference of epsilon on the subject's own prompt
    unrelated: float  # and on prompts without it
    ratio: float  # unrelated / subject, averaged over noise levels


@dataclass(frozen=True)
class Summary:
    """A run in numbers, with the settings that the verdict mentions."""

    method: str
    class_word: str
    steps_done: int
    steps_planned: int
    indicator_measured: bool
    window: int  # steps at the end over which `gamma` is averaged
    bins: list[BinSummary]
    most_since: int | None  # step since which more than half of the bins are near 1
    data_weight: float | None  # mean of 1 - gamma over the bins at the end; None without the adaptive loss weight
    trend: Trend  # of the denoising loss, corrected for the noise levels drawn
    terms: dict[str, TermSummary]
    balance: dict[str, BalanceSummary]
    drift: list[DriftSummary]  # by step; empty: not measured
    clipped: float | None  # share of steps whose gradient was clipped; None without clipping
    learning_rate: float
    temperature: float | str
    weights: dict[str, WeightSetting]  # of each term that has one
    augments: bool
    snapshots: list[int]
    truncated: bool
    left_out: list[int] = field(default_factory=list[int])  # numbers of the log's lines that are not a step

    @property
    def near_one(self) -> list[BinSummary]:
        return [item for item in self.bins if item.near_one_since is not None]


def summarize(log: RunLog, config: TrainConfig, *, snapshots: Sequence[int] = ()) -> Summary:
    """The numbers of a run. `snapshots`: the steps with a snapshot."""
    apt, runs_apt = config.apt, config.method == "apt"
    measured = log.gamma.shape[1] > 0 and config.indicator_measured(np.ravel(log.gamma > 0))
    window = max(1, len(log) // 10)
    bins = _bins(log, window) if measured else []
    weighs = measured and runs_apt and apt.adaptive_loss_weight
    limit = config.optimizer.max_grad_norm
    return Summary(
        method=config.method,
        class_word=config.class_word,
        steps_done=int(log.step[-1]),
        steps_planned=config.steps,
        indicator_measured=measured,
        window=window,
        bins=bins,
        most_since=_most_since(bins),
        data_weight=float(np.mean([1 - item.gamma for item in bins])) if weighs else None,
        trend=loss_trend(log),
        terms={name: _quarters(log.terms[name]) for name in log.terms if np.isfinite(log.terms[name]).any()},
        balance=_balance(log, apt.lazy_prior),
        drift=_drift(log),
        clipped=float(np.mean(log.grad_norm > limit)) if limit > 0 else None,
        learning_rate=config.optimizer.learning_rate,
        temperature=apt.temperature,
        weights=_weights(config),
        augments=measured and runs_apt and apt.adaptive_augmentation,
        snapshots=sorted(snapshots),
        truncated=log.truncated,
        left_out=log.left_out,
    )


def _weights(config: TrainConfig) -> dict[str, WeightSetting]:
    """The settings that weigh terms, by term."""
    values = flat_values(config)
    return {
        said.weighs: WeightSetting(name, values[name]) for name, said in all_said(TrainConfig).items() if said.weighs
    }


def loss_trend(log: RunLog) -> Trend:
    """Whether the corrected denoising loss differs between the third and the last quarter by more than chance."""
    loss = evened_denoising(log)
    loss = loss[np.isfinite(loss)]
    if len(loss) < FEWEST_STEPS:
        return "unknown"
    quarter = len(loss) // 4
    before, after = loss[-2 * quarter : -quarter], loss[-quarter:]
    error = np.sqrt(before.var(ddof=1) / quarter + after.var(ddof=1) / quarter)
    change = after.mean() - before.mean()
    if abs(change) <= SURE * error:
        return "flat"
    return "falling" if change < 0 else "rising"


def evened_denoising(log: RunLog) -> Floats:
    """The denoising loss (S,) as if every step had drawn the same noise levels; its mean is unchanged.

    It depends far more on the noise level than on training. So its size in each twentieth of the levels, fitted by
    least squares over the run, is subtracted. A log too short for that, or without levels, is returned as it is.
    """
    parts = 20
    loss = log.terms["denoising"]
    counts = np.array([len(drawn) for drawn in log.levels])
    known = np.isfinite(loss) & (counts > 0)
    if known.sum() < 2 * parts:
        return loss
    rows = np.repeat(np.arange(len(loss)), counts)
    drawn_from = np.zeros((len(loss), parts))  # share of each step's samples in each twentieth
    np.add.at(drawn_from, (rows, _parts_of(log, parts)), 1 / counts[rows])
    sizes = np.linalg.lstsq(drawn_from[known], loss[known], rcond=None)[0]
    return np.where(known, loss - drawn_from @ sizes + loss[known].mean(), np.nan)


def _bins(log: RunLog, window: int) -> list[BinSummary]:
    count = log.gamma.shape[1]
    samples = np.bincount(_parts_of(log, count), minlength=count)
    return [
        BinSummary(b, edges, int(samples[b]), float(log.gamma[-window:, b].mean()), _since(log, b, window))
        for b, edges in enumerate((b / count, (b + 1) / count) for b in range(count))
    ]


def _parts_of(log: RunLog, parts: int) -> NDArray[np.int64]:
    """The index of the equal part of [0, 1] that holds each sample's noise level."""
    levels = np.array([level for step in log.levels for level in step], dtype=np.float64)
    logged = levels + 1e-6  # the log has six digits, so one may be just below its edge
    return np.clip(np.floor(logged * parts), 0, parts - 1).astype(np.int64)


def _since(log: RunLog, bin: int, window: int) -> int | None:
    """First step after which the bin's curve, smoothed over a twentieth of the run, never dips below NEAR_ONE.

    Dips within the closing window do not count, as long as the window's mean is near 1.
    """
    curve = log.gamma[:, bin]
    if curve[-window:].mean() < NEAR_ONE:
        return None
    smooth = moving_average(curve, max(1, len(curve) // 20))
    below = np.flatnonzero(smooth[: len(curve) - window] < NEAR_ONE)
    return int(log.step[below[-1] + 1 if len(below) else 0])


def _most_since(bins: list[BinSummary]) -> int | None:
    since = sorted(item.near_one_since for item in bins if item.near_one_since is not None)
    most = len(bins) // 2 + 1
    return since[most - 1] if bins and len(since) >= most else None


def _quarters(values: Floats) -> TermSummary:
    known = values[np.isfinite(values)]
    quarter = max(1, len(known) // 4)
    return TermSummary(float(known[:quarter].mean()), float(known[-quarter:].mean()))


def _drift(log: RunLog) -> list[DriftSummary]:
    """Drift per snapshot, without snapshots that have not moved at all: they have no ratio."""
    measured = zip(log.drift_step, *(log.drift[name] for name in DRIFT), strict=True)
    return [
        DriftSummary(int(step), float(subject), float(unrelated), float(ratio))
        for step, subject, unrelated, ratio in measured
        if subject > 0 and np.isfinite(ratio)
    ]


def _balance(log: RunLog, lazy_prior: int) -> dict[str, BalanceSummary]:
    norms: dict[str, float] = {}
    for name, values in log.balance.items():
        known = values[np.isfinite(values)]
        if len(known):
            # Terms that read the prior act in every k-th step, scaled by k: per step, a k-th of what was measured.
            acts = 1.0 if np.isfinite(log.terms[name]).all() else 1 / lazy_prior
            norms[name] = float(np.median(known[len(known) // 2 :])) * acts
    total = sum(norms.values())
    return {name: BalanceSummary(norm, norm / total if total > 0 else 0.0) for name, norm in norms.items()}

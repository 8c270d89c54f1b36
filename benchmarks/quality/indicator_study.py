"""Does the indicator say when a run overfits?

Held-out pictures give the truth. What training gained on its own pictures, but not on others of the same subject, is
memorised. In: gamma against that truth, other temperatures replayed on the same runs.
Not in: rules that choose a snapshot (`snapshot_study`), what the methods are worth (`tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

from apt_train.training.indicator import OverfitIndicator

from .curves import Mean, key_of, priors_of
from .unit import GAMMA_EVERY

SATURATED = 0.95
TRUTHS = {
    "memorised": "rank correlation with memorised",
    "memorised_share": "... with the share memorised",
    "learned_share": "... with the share learned",
    "drift": "... with the drift on other prompts",
}
ACROSS = {
    "memorised_share": "with the share memorised",
    "learned_share": "with the share learned",
    "drift": TRUTHS["drift"].removeprefix("... "),
}
BASELINES: dict[str, Callable[[Bins], np.ndarray]] = {
    "the bin's number alone, descending": lambda item: -np.arange(len(item.prior), dtype=float),
    "the step alone": lambda item: np.full(len(item.prior), float(item.step)),
    "the run's own gamma": lambda item: item.gamma,
}
"""Predictors that a temperature has to beat. All but the last ignore the losses."""
TEMPERATURES: tuple[float | Literal["auto"], ...] = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, "auto")


@dataclass(frozen=True)
class Bins:
    """One snapshot of one run, per bin of the noise level (B,)."""

    unit: tuple[str, int, str]
    step: int
    gamma: np.ndarray  # of the run's indicator
    prior: np.ndarray  # the prior's loss on the training pictures
    gain: np.ndarray  # prior - tuned on the training pictures
    heldout: np.ndarray  # prior - tuned on held-out pictures
    drift: np.ndarray  # from the prior, on prompts about other things
    own_drift: np.ndarray  # from the prior, on the subject's prompts

    @property
    def relative(self) -> np.ndarray:
        """The gain as a share of the prior's loss."""
        return self.gain / self.prior

    @property
    def memorised(self) -> np.ndarray:
        """The gain that held-out pictures do not share."""
        return self.gain - self.heldout

    @property
    def drift_ratio(self) -> float:
        """Drift on other prompts over drift on the subject's, averaged over all bins but the cleanest.

        Defined as in the trainer's own probe (`apt_train.sample.drift`), which uses other prompts at five timesteps.
        """
        return float((self.drift[1:] / self.own_drift[1:]).mean())

    @property
    def memorised_share(self) -> np.ndarray:
        """The same as a share of the prior's loss, which differs a hundredfold between bins."""
        return self.memorised / self.prior

    @property
    def learned_share(self) -> np.ndarray:
        """The gain on held-out pictures as a share of the prior's loss."""
        return self.heldout / self.prior

    def gamma_at(self, temperature: float | Literal["auto"]) -> np.ndarray:
        """The indicator's gamma for these losses at another temperature."""
        count = len(self.prior)
        indicator = OverfitIndicator(bins=count, temperature=temperature, num_timesteps=count)
        indicator.update(torch.arange(count), *(torch.from_numpy(x) for x in (self.prior, self.prior - self.gain)))
        return indicator.gamma.numpy()


def bins_of(units: Sequence[dict[str, Any]]) -> list[Bins]:
    """Every probed snapshot of every run that has gamma."""
    priors, found = priors_of(units), []
    for unit in units:
        key = key_of(unit)
        if key in priors and np.any(unit.get("gamma", 0)):
            name, losses = (*key, unit["unit"]["variant"]), priors[key]["prior_losses"]
            found += [_bins(name, snapshot, unit["gamma"], losses) for snapshot in unit["snapshots"]]
    return found


def _bins(name: tuple[str, int, str], snapshot: dict[str, Any], gamma: list[list[float]], prior: Any) -> Bins:
    losses = snapshot["losses"]
    before = {place: np.array(prior[place]) for place in ("training", "heldout")}
    after = {place: np.array(losses[place]) for place in ("training", "heldout")}
    return Bins(
        name,
        snapshot["step"],
        np.array(gamma[snapshot["step"] // GAMMA_EVERY - 1]),
        before["training"],
        before["training"] - after["training"],
        before["heldout"] - after["heldout"],
        *(np.array(snapshot["drift"][kind]) for kind in ("other", "subject")),
    )


def temperature_table(units: Sequence[dict[str, Any]], variant: str = "dreambooth") -> str:
    """Temperatures replayed on the same runs: how gamma climbs, how many bins saturate, what it tracks."""
    runs = [item for item in bins_of(units) if item.unit[2] == variant]
    steps = sorted({item.step for item in runs})
    lines = [
        "| predictor | "
        + " | ".join(f"gamma at {step}" for step in steps)
        + f" | bins above 0.95 at the first snapshot | {' | '.join(TRUTHS.values())} |",
        "|---" * (len(steps) + 2 + len(TRUTHS)) + "|",
    ]
    for name, predict in BASELINES.items():
        lines.append(f"| {name} |" + " |" * (len(steps) + 1) + f" {' | '.join(_pooled(runs, predict))} |")
    for temperature in TEMPERATURES:
        means = [np.mean([item.gamma_at(temperature).mean() for item in runs if item.step == step]) for step in steps]
        full = np.mean([(item.gamma_at(temperature) > SATURATED).mean() for item in runs if item.step == steps[0]])
        tracks = _pooled(runs, methodcaller("gamma_at", temperature))
        cells = [f"T {temperature}", *(f"{mean:.2f}" for mean in means), f"{full:.0%}", *tracks]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pooled(runs: Sequence[Bins], predict: Callable[[Bins], np.ndarray]) -> list[str]:
    """Spearman's rho with each truth, over all bins and snapshots of a run. Mean over the runs with its interval."""
    units = dict.fromkeys(item.unit for item in runs)
    by_unit = [[item for item in runs if item.unit == unit] for unit in units]
    return [said(Mean.of([_rho(mine, predict, attrgetter(truth)) for mine in by_unit])) for truth in TRUTHS]


# -- between runs


def across_table(units: Sequence[dict[str, Any]], step: int) -> str:
    """Among runs on one subject at one step, does the one with the higher gamma overfit more? By bin, and by the mean.

    Spearman's rho over variants and seeds, then the mean over subjects with its interval. Only runs at the shipped
    temperature count, since gamma's scale depends on it.
    """
    runs: dict[str, list[Bins]] = {}
    for item in bins_of([unit for unit in units if "temperature" not in unit.get("settings", {}).get("apt", {})]):
        if item.step == step:
            runs.setdefault(item.unit[0], []).append(item)
    lines = [f"| bin | runs a subject | {' | '.join(f'rank correlation {name}' for name in ACROSS.values())} |"]
    lines.append("|---" * (len(ACROSS) + 2) + "|")
    if not runs:
        return "\n".join(lines)
    count, most = len(next(iter(runs.values()))[0].prior), max(map(len, runs.values()))
    for name, pick in [*((str(bin), partial(_only, bin)) for bin in range(count)), ("mean", _mean)]:
        rhos = [[_rho(mine, pick("gamma"), pick(truth)) for mine in runs.values()] for truth in ACROSS]
        lines.append(f"| {name} | {most} | {' | '.join(said(Mean.of(rho)) for rho in rhos)} |")
    return "\n".join(lines)


def _only(bin: int, name: str) -> Callable[[Bins], np.ndarray]:
    return lambda item: getattr(item, name)[bin : bin + 1]


def _mean(name: str) -> Callable[[Bins], np.ndarray]:
    return lambda item: getattr(item, name).mean(keepdims=True)


def _rho(runs: Sequence[Bins], predict: Callable[[Bins], np.ndarray], truth: Callable[[Bins], np.ndarray]) -> float:
    ours, theirs = (np.concatenate([values(item) for item in runs]) for values in (predict, truth))
    if not np.ptp(ours) or not np.ptp(theirs):  # a constant has no rank
        return float("nan")
    rank: Any = stats.spearmanr(np.round(ours, 6), theirs)
    return float(rank.statistic)


def said(mean: Mean) -> str:
    return f"{mean.mean:.2f} ±{mean.half:.2f} (n {mean.n})" if mean.n > 1 else f"{mean.mean:.2f} (n {mean.n})"

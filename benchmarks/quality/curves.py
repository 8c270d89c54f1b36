"""Units as curves over training steps, and differences between variants at equal step or at equal fidelity.

"Less overfitting" could be nothing but "less training". So variants are compared at the same step and at the same
*level*. On one subject and seed, the prior's fidelity is level 0 and the baseline's best is level 1. A variant is
measured where its own curve first reaches the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .grid import PRIOR
from .subjects import KINDS

BASELINE = "dreambooth"
LEVELS = (0.5, 0.75, 0.9)
LEVEL = 0.75  # of the tables


@dataclass(frozen=True)
class Curve:
    """One unit: `steps` (S,), from 0, and named measures (S,), NaN where a step lacks one."""

    subject: str
    group: str
    seed: int
    variant: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    recommended: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The key by which curves are paired."""
        return self.subject, self.seed

    def at_step(self, name: str, step: int) -> float:
        rows = np.flatnonzero(self.steps == step)
        return float(self.values[name][rows[0]]) if len(rows) else float("nan")

    def sampled(self) -> np.ndarray:
        """Rows of the steps at which pictures were sampled."""
        return np.flatnonzero(np.isfinite(self.values["fidelity"]))

    def crossing(self, fidelity: float) -> float | None:
        """The step at which fidelity first reaches a value, interpolated between sampled steps. None: it never does."""
        rows = self.sampled()
        steps, heights = self.steps[rows], self.values["fidelity"][rows]
        for left, right in zip(range(len(rows) - 1), range(1, len(rows)), strict=True):
            if heights[left] < fidelity <= heights[right]:
                share = (fidelity - heights[left]) / (heights[right] - heights[left])
                return float(steps[left] + share * (steps[right] - steps[left]))
        return float(steps[0]) if len(rows) and heights[0] >= fidelity else None

    def value_at(self, name: str, step: float) -> float:
        """A measure at any step, interpolated linearly."""
        known = np.isfinite(self.values[name])
        return float(np.interp(step, self.steps[known], self.values[name][known])) if known.any() else float("nan")


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% interval (Student's t) over `n` units."""

    mean: float
    half: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        known = np.array([value for value in values if np.isfinite(value)])
        if len(known) == 0:
            return Mean(float("nan"), float("nan"), 0)
        if len(known) == 1:
            return Mean(float(known[0]), float("nan"), 1)
        half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
        return Mean(float(known.mean()), float(half), len(known))

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.n > 1 and abs(self.mean) > self.half


def curves_of(units: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve per trained unit. Each starts with the prior's measures for its subject and seed."""
    priors = priors_of(units)
    trained = (unit for unit in units if unit["unit"]["variant"] != PRIOR)
    return [_curve(unit, priors[key_of(unit)]) for unit in trained if key_of(unit) in priors]


def priors_of(units: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The prior's measures, by subject and seed."""
    return {key_of(unit): unit["snapshots"][0] for unit in units if unit["unit"]["variant"] == PRIOR}


def floors_of(units: Sequence[dict[str, Any]]) -> dict[str, Mean]:
    """The prior against itself at other seeds: the floor of each sampled measure."""
    return _means([*priors_of(units).values()])


def ceilings_of(units: Sequence[dict[str, Any]]) -> dict[str, Mean]:
    """Scores of true pictures of the prompts, where the judge can make them: the ceiling."""
    return _means([prior["true"] for prior in priors_of(units).values() if "true" in prior])


def _means(judged: Sequence[dict[str, Any]]) -> dict[str, Mean]:
    """Means of the picture measures. Drift needs a model, so it is left out."""
    rows = [_measures({**one, "drift": {}}, None) for one in judged]
    return {name: Mean.of([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def last_step(curves: Sequence[Curve]) -> int:
    """The last step at which any curve was sampled."""
    return max(int(curve.steps[curve.sampled()].max()) for curve in curves)


def at_step(curves: Sequence[Curve], variant: str, name: str, step: int) -> dict[tuple[str, int], float]:
    """One measure at one step, by unit."""
    return {curve.key: curve.at_step(name, step) for curve in curves if curve.variant == variant}


def at_level(
    curves: Sequence[Curve], variant: str, name: str, level: float = LEVEL, baseline: str = BASELINE
) -> dict[tuple[str, int], float]:
    """One measure where a variant first reaches `level` (see the module), by unit. NaN where it never does."""
    goals = {curve.key: _goal(curve, level) for curve in curves if curve.variant == baseline}
    found = {}
    for curve in curves:
        if curve.variant == variant and curve.key in goals:
            step = curve.crossing(goals[curve.key])
            value = step if name == "step" else None if step is None else curve.value_at(name, step)
            found[curve.key] = float("nan") if value is None else value
    return found


def differences(
    ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]
) -> dict[tuple[str, int], float]:
    """Ours minus theirs, by unit. Units that either lacks, or where either is NaN, are left out."""
    gaps = {key: ours[key] - theirs[key] for key in ours if key in theirs}
    return {key: gap for key, gap in gaps.items() if np.isfinite(gap)}


def _goal(curve: Curve, level: float) -> float:
    """NaN where the baseline never rose above the prior, so levels are undefined."""
    heights = curve.values["fidelity"][curve.sampled()]
    return float(heights[0] + level * (heights.max() - heights[0])) if heights.max() > heights[0] else float("nan")


def _curve(unit: dict[str, Any], floor: dict[str, Any]) -> Curve:
    losses = floor["prior_losses"]
    rows = [_measures(floor, losses), *(_measures(snapshot, losses) for snapshot in unit["snapshots"])]
    names = {name for row in rows for name in row}
    about = unit["unit"]
    return Curve(
        about["subject"],
        about["group"],
        about["seed"],
        about["variant"],
        np.array([0, *(snapshot["step"] for snapshot in unit["snapshots"])]),
        {name: np.array([row.get(name, np.nan) for row in rows]) for name in sorted(names)},
        unit.get("recommended"),
    )


def _measures(snapshot: dict[str, Any], prior: dict[str, list[float]] | None) -> dict[str, float]:
    """One snapshot's numbers under flat names. Gaps are the prior's loss minus the tuned model's, over all bins."""
    found = dict(snapshot.get("score", {}))
    for place, suffix in (("elsewhere", ""), ("scene", "_scene")):
        for name in ("fid", "precision", "recall"):
            if place in snapshot.get("distances", {}):
                found[name + suffix] = snapshot["distances"][place][name]
    drift = snapshot.get("drift", {kind: [0.0] for kind in KINDS})
    found |= {f"drift_{kind}": float(np.mean(drift[kind])) for kind in KINDS if kind in drift}
    if prior is not None:
        tuned = snapshot.get("losses", prior)
        gaps = {name: float(np.mean(np.subtract(prior[name], tuned[name]))) for name in prior}
        found |= {f"gap_{name}": value for name, value in gaps.items()}
        if "heldout" in gaps:
            found["memorised"] = gaps["training"] - gaps["heldout"]
    return found


def key_of(unit: dict[str, Any]) -> tuple[str, int]:
    """The key by which units are paired: subject and seed."""
    return unit["unit"]["subject"], unit["unit"]["seed"]

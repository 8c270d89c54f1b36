"""Which snapshot to take? Rules that need no held-out picture, against the best choice in hindsight.

A snapshot's value depends on how much the class word counts. `WORTHS` has three answers, and a rule that is good for
one of them can be poor for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .curves import BASELINE, Curve, Mean, curves_of
from .indicator_study import Bins, bins_of, said

WORTHS = {"kept": 0.0, "kept minus half the leak": 0.5, "kept minus leak": 1.0}
"""Share of the subject's pictures that are kept, minus a weighted share of its class's pictures that show it."""

Rule = Callable[[Curve, Sequence[Bins]], int]
"""A run's sampled curve and its bins -> the step to take."""


def worth(curve: Curve, leak: float) -> dict[int, float]:
    """Value by sampled step. `leak`: the weight of the class word's pictures."""
    kept, leaked = curve.values["kept"], curve.values["leak"]
    return {int(curve.steps[row]): float(kept[row] - leak * leaked[row]) for row in _drawn(curve)}


def steps_of(curve: Curve) -> list[int]:
    """The snapshots to choose from."""
    return [int(curve.steps[row]) for row in _drawn(curve)]


def last(curve: Curve, bins: Sequence[Bins]) -> int:
    return max(steps_of(curve))


def indicated(curve: Curve, bins: Sequence[Bins]) -> int:
    """The indicator's choice (`indicator_rule`): the latest sampled snapshot up to it, or the first."""
    assert curve.recommended is not None
    return max((step for step in steps_of(curve) if step <= curve.recommended), default=min(steps_of(curve)))


def relative_gap(limit: float) -> Rule:
    """The last snapshot whose mean relative gap on the training pictures is at most `limit`."""

    def rule(curve: Curve, bins: Sequence[Bins]) -> int:
        below = [item.step for item in bins if item.step in steps_of(curve) and item.relative.mean() <= limit]
        return max(below, default=min(steps_of(curve)))

    return rule


def drift_at_most(kind: str, limit: float) -> Rule:
    """The last snapshot with a drift of at most `limit` (epsilon^2) on one kind of prompt (class, other)."""

    def rule(curve: Curve, bins: Sequence[Bins]) -> int:
        below = [step for step in steps_of(curve) if curve.at_step(f"drift_{kind}", step) <= limit]
        return max(below, default=min(steps_of(curve)))

    return rule


def risen(factor: float) -> Rule:
    """The last snapshot whose drift ratio is at most `factor` times the run's lowest so far.

    `apt_train.verdict.recommend` applies this to the trainer's own, smaller probe.
    """

    def rule(curve: Curve, bins: Sequence[Bins]) -> int:
        ratios = {item.step: item.drift_ratio for item in bins if item.step in steps_of(curve)}
        lowest = {step: min(ratios[before] for before in ratios if before <= step) for step in ratios}
        return max(step for step, ratio in ratios.items() if ratio <= factor * lowest[step])

    return rule


def most_specific(curve: Curve, bins: Sequence[Bins]) -> int:
    """The snapshot with the highest ratio of drift on the subject's prompts to drift on its class's."""
    return max(
        steps_of(curve), key=lambda step: curve.at_step("drift_subject", step) / curve.at_step("drift_class", step)
    )


RULES: dict[str, Rule] = {
    "always the last": last,
    "the indicator's": indicated,
    **{f"relative gap at most {limit:g}": relative_gap(limit) for limit in (0.15, 0.2, 0.25, 0.3)},
    **{f"drift of the class at most {limit:g}": drift_at_most("class", limit) for limit in (0.01, 0.02, 0.03)},
    **{f"drift elsewhere at most {limit:g}": drift_at_most("other", limit) for limit in (0.003, 0.006, 0.01)},
    **{f"drift ratio at most {factor:g} times its lowest": risen(factor) for factor in (1.5, 2, 2.5, 3, 4)},
    "most specific drift": most_specific,
}


def snapshot_table(units: Sequence[dict[str, Any]]) -> str:
    """What each rule loses against the best snapshot in hindsight, over all runs and over DreamBooth's."""
    curves = {(*curve.key, curve.variant): curve for curve in curves_of(units)}
    runs: dict[tuple[str, int, str], list[Bins]] = {}
    for item in bins_of(units):
        runs.setdefault(item.unit, []).append(item)
    runs = {key: bins for key, bins in runs.items() if key in curves}
    groups = {"": runs, f", {BASELINE}": {key: bins for key, bins in runs.items() if key[2] == BASELINE}}
    columns = [(leak, name + of, chosen) for name, leak in WORTHS.items() for of, chosen in groups.items()]
    lines = ["| rule | " + " | ".join(title for _, title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rule in RULES.items():
        lost = ([_lost(curves[key], bins, rule, leak) for key, bins in chosen.items()] for leak, _, chosen in columns)
        lines.append(f"| {name} | " + " | ".join(said(Mean.of(values)) for values in lost) + " |")
    return "\n".join(lines)


def _lost(curve: Curve, bins: Sequence[Bins], rule: Rule, leak: float) -> float:
    found = worth(curve, leak)
    return max(found.values()) - found[rule(curve, bins)]


def _drawn(curve: Curve) -> list[int]:
    return [row for row in curve.sampled() if curve.steps[row] > 0]

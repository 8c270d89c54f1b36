"""Which snapshot of a run to look at first: one simple rule on the drift from the prior.

In: the rule and its reason in words; the verdict's advice uses the same rule, so the two never disagree. Not in:
numbers (`run_summary`), the rest of the verdict (`words`).

The rule is ours: the last snapshot whose drift ratio is at most `RISE` times the run's lowest so far. On the drawn
world no rule beat "always the last" by more than chance (docs/benchmark.md), and every recommendation says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .run_summary import FEWEST_STEPS, RISE, DriftSummary, Summary

UNPROVEN = (
    "This rule does not see likeness, and in our benchmark it chose no better than the last: let pictures decide."
)


@dataclass(frozen=True)
class Recommendation:
    """The recommended step, a snapshot's or the run's last, and why."""

    step: int
    reason: str


def recommended_snapshot(summary: Summary) -> Recommendation:
    """The last snapshot before the drift ratio rose; the last step if it has not, or was not measured."""
    last = summary.steps_done
    if last < FEWEST_STEPS:
        return Recommendation(last, f"with fewer than {FEWEST_STEPS} steps there is little to choose from.")
    if len(summary.drift) < 2:
        reason = "the drift ratio was not measured at two snapshots or more (watch_drift, snapshot_every), so this is"
        return Recommendation(last, f"{reason} simply the last. {UNPROVEN}")
    end, lowest = summary.drift[-1], lowest_ratio(summary)
    measured = f"{end.ratio:.2f} at step {end.step}, the run's lowest {lowest:.2f}"
    if not has_risen(summary):
        return Recommendation(last, f"the drift ratio has not risen {RISE:g}-fold ({measured}). {UNPROVEN}")
    before = last_before_rising(summary)
    if before is None:
        reason = f"the drift ratio rose more than {RISE:g}-fold ({measured}), but no snapshot from before that is left."
        return Recommendation(last, f"{reason} {UNPROVEN}")
    reason = f"the last snapshot from before the drift ratio rose more than {RISE:g}-fold ({measured}). Later ones"
    return Recommendation(before.step, f"{reason} change prompts without the subject, too. {UNPROVEN}")


def not_risen(ratios: Sequence[float]) -> list[int]:
    """The places of the drift ratios that are at most `RISE` times the lowest up to there; the first always is."""
    lowest = enumerate(accumulate(ratios, min))
    return [place for place, low in lowest if ratios[place] <= max(low, RISE * low)]  # below 0 only in an edited log


def has_risen(summary: Summary) -> bool:
    """Whether the newest drift ratio is more than `RISE` times the run's lowest."""
    return summary.drift[-1:] != _before_rising(summary)[-1:]


def lowest_ratio(summary: Summary) -> float:
    return min(item.ratio for item in summary.drift)


def last_before_rising(summary: Summary) -> DriftSummary | None:
    """The last existing snapshot with at most `RISE` times the lowest ratio so far; None: no rise, or none is left."""
    kept = _before_rising(summary) if has_risen(summary) else []
    return next((item for item in reversed(kept) if item.step in summary.snapshots), None)


def _before_rising(summary: Summary) -> list[DriftSummary]:
    return [summary.drift[place] for place in not_risen([item.ratio for item in summary.drift])]

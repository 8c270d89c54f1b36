"""Which snapshot of a run to look at first: one plain rule on the overfitting indicator.

In: the rule and its reason in words; the verdict's advice reads the same rule, so the two never disagree. Not in:
numbers (`run_summary`), the rest of the verdict (`verdict`).

The rule is ours: the latest snapshot from before most timestep bins were near 1. On the drawn world it chose no better
than "always the last" (docs/benchmark.md; six subjects, one seed), and it says so wherever it speaks. The indicator
compares losses on the training pictures; likeness and obedience to a prompt it cannot see.
"""

from __future__ import annotations

from dataclasses import dataclass

from .run_summary import FEWEST_STEPS, NEAR_ONE, Summary

EARLY = 0.15  # of the run's steps (ours)
UNPROVEN = (
    "This rule sees the training pictures alone, and in our benchmark it chose no better than the last: let pictures "
    "decide."
)


@dataclass(frozen=True)
class Recommendation:
    """The step to take, a snapshot's or the run's last, and why."""

    step: int
    reason: str


def recommended_snapshot(summary: Summary) -> Recommendation:
    """The latest snapshot from before most bins were near 1; the last step where nothing speaks for an earlier one."""
    last, since = summary.steps_done, summary.most_since
    if not summary.indicator_measured:
        reason = "the overfitting indicator was not measured, so nothing in the log speaks for an earlier snapshot."
        return Recommendation(last, reason)
    if summary.steps_done < FEWEST_STEPS:
        reason = f"with fewer than {FEWEST_STEPS} steps the indicator has no say yet, so this is simply the last."
        return Recommendation(last, reason)
    if since is None:
        return Recommendation(last, f"{_how_many(summary)}, so nothing speaks for an earlier snapshot. {UNPROVEN}")
    if too_early_to_trust(summary):
        reason = (
            f"most timestep bins were near 1 as early as step {since}, which says more about temperature "
            f"{summary.temperature:g} than about overfitting, so this is simply the last. {UNPROVEN}"
        )
        return Recommendation(last, reason)
    before = snapshot_before_most(summary)
    if before is not None:
        reason = f"the latest snapshot from before step {since}, when most timestep bins were near 1. {UNPROVEN}"
        return Recommendation(before, reason)
    return Recommendation(min([*summary.snapshots, last]), f"{_nothing_before(summary)} {UNPROVEN}")


def snapshot_before_most(summary: Summary) -> int | None:
    """The latest snapshot from before most bins were near 1; None: there is none, or they never were."""
    since = summary.most_since
    return max((step for step in summary.snapshots if since is not None and step < since), default=None)


def too_early_to_trust(summary: Summary) -> bool:
    """Whether a temperature that is a number drove most bins near 1 before the run can have overfitted."""
    since = summary.most_since
    return since is not None and since <= EARLY * summary.steps_done and summary.temperature != "auto"


def _how_many(summary: Summary) -> str:
    near = len(summary.near_one)
    return f"{near or 'none'} of {len(summary.bins)} timestep bins {'is' if near < 2 else 'are'} near 1 ({NEAR_ONE})"


def _nothing_before(summary: Summary) -> str:
    earliest = min([*summary.snapshots, summary.steps_done])
    which = "the only one" if earliest == summary.steps_done else "the earliest"
    return (
        f"most timestep bins were near 1 from step {summary.most_since} on, and no snapshot is from before that, so "
        f"this is {which} there is: set snapshot_every below {summary.most_since} to have earlier ones."
    )

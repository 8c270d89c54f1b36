"""Which snapshot of a run to look at first: one plain rule on the drift from the prior.

In: the rule and its reason in words; the verdict's advice reads the same rule, so the two never disagree. Not in:
numbers (`run_summary`), the rest of the verdict (`verdict`).

The rule is ours: the last snapshot that changes prompts without the subject at most `SPILLS` as much as the subject's
own. On the drawn world it is as good as always taking the last one, and better where a run went on for too long; a rule
on the indicator alone, which this replaces, was worse than the last (docs/benchmark.md). Likeness it cannot see.
"""

from __future__ import annotations

from dataclasses import dataclass

from .run_summary import FEWEST_STEPS, SPILLS, DriftSummary, Summary

UNSEEN = "This rule does not see likeness: let pictures decide."


@dataclass(frozen=True)
class Recommendation:
    """The step to take, a snapshot's or the run's last, and why."""

    step: int
    reason: str


def recommended_snapshot(summary: Summary) -> Recommendation:
    """The last snapshot with a drift ratio of at most `SPILLS`; the last step where nothing speaks for an earlier."""
    last = summary.steps_done
    if last < FEWEST_STEPS:
        return Recommendation(last, f"with fewer than {FEWEST_STEPS} steps there is little to choose from.")
    if not summary.drift:
        reason = "the drift from the prior was not measured (it is every snapshot_every steps, with watch_drift on),"
        return Recommendation(last, f"{reason} so this is simply the last. {UNSEEN}")
    end = summary.drift[-1]
    if end.ratio <= SPILLS:
        reason = f"the drift ratio is {end.ratio:.2f}, at most {SPILLS:g}, so nothing speaks for an earlier one."
        return Recommendation(last, f"{reason} {UNSEEN}")
    kept = last_before_spilling(summary)
    if kept is None:
        reason = f"the drift ratio was above {SPILLS:g} at every snapshot: an earlier one is no cure; this is the last."
        return Recommendation(last, f"{reason} {UNSEEN}")
    reason = f"the last snapshot with a drift ratio of at most {SPILLS:g} ({kept.ratio:.2f}, the end {end.ratio:.2f}):"
    return Recommendation(kept.step, f"{reason} later ones change prompts without the subject, too. {UNSEEN}")


def last_before_spilling(summary: Summary) -> DriftSummary | None:
    """The last snapshot with a drift ratio of at most `SPILLS`, where the end's is above; None: there is none."""
    if not summary.drift or summary.drift[-1].ratio <= SPILLS:
        return None
    return next((item for item in reversed(summary.drift) if item.ratio <= SPILLS), None)

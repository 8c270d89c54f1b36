"""The snapshot that the overfitting indicator alone would choose: the Monitor's first rule, kept for comparison."""

from __future__ import annotations

from apt_train.verdict.run_summary import FEWEST_STEPS, Summary

EARLY = 0.15  # share of the run's steps


def indicated_snapshot(summary: Summary) -> int:
    """The latest snapshot before most bins came near 1, or the earliest if none precedes that.

    The last step, if most bins never did, or the run is too short to tell. Also if a numeric temperature drove most
    bins near 1 within the first `EARLY` share of the run.
    """
    last, since = summary.steps_done, summary.most_since
    if since is None or last < FEWEST_STEPS or (since <= EARLY * last and summary.temperature != "auto"):
        return last
    before = [step for step in summary.snapshots if step < since]
    return max(before) if before else min([*summary.snapshots, last])

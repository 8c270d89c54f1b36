"""The snapshot that the overfitting indicator alone would choose: the Monitor's first rule, kept to be measured."""

from __future__ import annotations

from apt_train.verdict.run_summary import FEWEST_STEPS, Summary

EARLY = 0.15  # of the run's steps


def indicated_snapshot(summary: Summary) -> int:
    """The latest snapshot from before most bins were near 1, the earliest where none is, else the last step.

    The last, too, where a temperature that is a number drove most bins near 1 in the run's first `EARLY` part.
    """
    last, since = summary.steps_done, summary.most_since
    if since is None or last < FEWEST_STEPS or (since <= EARLY * last and summary.temperature != "auto"):
        return last
    before = [step for step in summary.snapshots if step < since]
    return max(before) if before else min([*summary.snapshots, last])

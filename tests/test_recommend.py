"""Which snapshot is recommended: the rule at its edges, its honesty, and that the verdict says the same."""

from __future__ import annotations

import re
from typing import Any

import pytest

from apt_train.config import AptConfig, TrainConfig
from apt_train.report.recommend import UNPROVEN, recommended_snapshot
from apt_train.report.run_log import read_log
from apt_train.report.run_summary import Summary, summarize
from apt_train.report.verdict import paragraph
from tests.synthetic_run import plausible_log, write_run


def summary_of(tmp_path, steps: int = 1000, snapshots: list[int] | None = None, **changes: Any) -> Summary:
    """A run whose bins all climb to near 1, most of them by about step 528, unless `changes` say otherwise."""
    temperature = changes.pop("temperature", 1000.0)
    write_run(tmp_path, plausible_log(steps, **{"rise": 100.0, "ceiling": (0.99, 0.97), **changes}))
    config = TrainConfig(class_word="toy", steps=steps, apt=AptConfig(temperature=temperature))
    return summarize(read_log(tmp_path / "log.jsonl"), config, snapshots=snapshots or [])


def test_the_latest_snapshot_from_before_most_bins_were_near_1(tmp_path) -> None:
    summary = summary_of(tmp_path, snapshots=[250, 500, 750, 1000])
    assert summary.most_since is not None and 500 < summary.most_since < 600
    choice = recommended_snapshot(summary)
    assert choice.step == 500 and f"before step {summary.most_since}" in choice.reason


def test_a_snapshot_of_the_very_step_is_no_longer_from_before(tmp_path) -> None:
    since = summary_of(tmp_path).most_since
    assert since is not None
    assert recommended_snapshot(summary_of(tmp_path, snapshots=[100, since])).step == 100
    assert recommended_snapshot(summary_of(tmp_path, snapshots=[100, since - 1])).step == since - 1


def test_without_a_snapshot_that_early_the_earliest_and_a_word_on_it(tmp_path) -> None:
    choice = recommended_snapshot(summary_of(tmp_path, snapshots=[1000, 750]))
    assert choice.step == 750 and "the earliest there is" in choice.reason and "snapshot_every" in choice.reason
    for only in ([1000], []):
        choice = recommended_snapshot(summary_of(tmp_path, snapshots=only))
        assert choice.step == 1000 and "the only one there is" in choice.reason


def test_where_most_are_not_near_1_the_last(tmp_path) -> None:
    none = recommended_snapshot(summary_of(tmp_path, snapshots=[500, 1000], ceiling=(0.6, 0.2)))
    assert none.step == 1000 and "none of 10 timestep bins is near 1" in none.reason
    some = recommended_snapshot(summary_of(tmp_path, snapshots=[500, 1000], rise=150, ceiling=(0.99, 0.5)))
    assert some.step == 1000 and "2 of 10 timestep bins are near 1" in some.reason


def test_an_indicator_that_was_not_measured_recommends_nothing_but_the_last(tmp_path) -> None:
    lines = [line | {"gamma": [0.0] * 10} for line in plausible_log(200, regularised=False)]
    write_run(tmp_path, lines)
    config = TrainConfig(class_word="toy", steps=200, method="dreambooth")
    choice = recommended_snapshot(summarize(read_log(tmp_path / "log.jsonl"), config, snapshots=[100, 200]))
    assert choice.step == 200 and "not measured" in choice.reason


def test_a_short_run_has_no_say(tmp_path) -> None:
    choice = recommended_snapshot(summary_of(tmp_path, steps=39, rise=0.1, snapshots=[10, 39]))
    assert choice.step == 39 and "no say yet" in choice.reason


def test_a_temperature_out_of_scale_is_not_read_as_overfitting(tmp_path) -> None:
    fixed = recommended_snapshot(summary_of(tmp_path, rise=10, snapshots=[10, 500, 1000]))
    assert fixed.step == 1000 and "temperature 1000" in fixed.reason
    relative = recommended_snapshot(summary_of(tmp_path, rise=10, snapshots=[10, 500, 1000], temperature="auto"))
    assert relative.step == 10


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"snapshots": [250, 500, 1000]},
        {"snapshots": [700, 1000]},
        {"rise": 10, "snapshots": [10, 500]},
        {"rise": 10, "snapshots": [10, 500], "temperature": "auto"},
        {"ceiling": (0.6, 0.2), "snapshots": [500]},
        {"rise": 150, "ceiling": (0.99, 0.5), "snapshots": [500]},
    ],
)
def test_the_verdict_never_names_another_snapshot(tmp_path, changes) -> None:
    summary = summary_of(tmp_path, **changes)
    choice, words = recommended_snapshot(summary), paragraph(summary)
    assert choice.reason.endswith(UNPROVEN)
    named = re.search(r"snapshot of step (\d+)", words)
    if named:
        assert int(named[1]) == choice.step
    if choice.step == summary.steps_done and len(summary.snapshots) > 1:
        assert "compare the snapshot" not in words

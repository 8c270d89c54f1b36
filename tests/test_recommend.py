"""Which snapshot is recommended: the rule at its edges, its honesty, and that the verdict says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from apt_train.config import TrainConfig
from apt_train.report.recommend import UNSEEN, last_before_spilling, recommended_snapshot
from apt_train.report.run_log import read_log
from apt_train.report.run_summary import SPILLS, Summary, summarize
from apt_train.report.verdict import paragraph
from tests.synthetic_run import Line, plausible_log, write_run


def summary_of(folder: Path, lines: list[Line]) -> Summary:
    write_run(folder, lines)
    steps = len(lines)
    snapshots = list(range(50, steps + 1, 50))
    return summarize(read_log(folder / "log.jsonl"), TrainConfig(class_word="toy", steps=steps), snapshots=snapshots)


def with_ratios(folder: Path, ratios: list[float]) -> Summary:
    """A run with a snapshot every 50 steps, whose drift had these ratios."""
    lines = plausible_log(50 * len(ratios), ceiling=(0.6, 0.2))
    for number, ratio in enumerate(ratios, start=1):
        lines[50 * number - 1]["drift"] = {"subject": 0.01, "unrelated": 0.01 * ratio}
    return summary_of(folder, lines)


def test_the_last_snapshot_that_does_not_spill(tmp_path: Path) -> None:
    choice = recommended_snapshot(with_ratios(tmp_path, [0.1, 0.15, 0.18, 0.25, 0.5]))
    assert choice.step == 150 and "0.18" in choice.reason and "0.50" in choice.reason


def test_a_ratio_that_came_down_again_counts_and_the_limit_itself_does_not_spill(tmp_path: Path) -> None:
    assert recommended_snapshot(with_ratios(tmp_path, [0.1, 0.4, 0.15, 0.4])).step == 150
    assert recommended_snapshot(with_ratios(tmp_path, [0.1, SPILLS - 1e-9, SPILLS + 1e-6])).step == 100


def test_where_it_never_spills_the_last(tmp_path: Path) -> None:
    choice = recommended_snapshot(with_ratios(tmp_path, [0.4, 0.15, 0.18]))
    assert choice.step == 150 and "0.18" in choice.reason and "nothing speaks for an earlier one" in choice.reason


def test_where_it_always_spills_no_snapshot_is_a_cure(tmp_path: Path) -> None:
    summary = with_ratios(tmp_path, [0.5, 0.6, 0.7])
    choice = recommended_snapshot(summary)
    assert choice.step == 150 and "at every snapshot" in choice.reason
    assert last_before_spilling(summary) is None
    assert "switch adaptive_augmentation off" in paragraph(summary)


def test_steps_after_the_last_measured_snapshot_go_on_with_it(tmp_path: Path) -> None:
    lines = plausible_log(120, ratios=(0.1, 0.1))
    assert recommended_snapshot(summary_of(tmp_path, lines)).step == 120


def test_without_a_measure_simply_the_last(tmp_path: Path) -> None:
    choice = recommended_snapshot(summary_of(tmp_path, plausible_log(200, rise=50.0, ceiling=(0.99, 0.97))))
    assert choice.step == 200 and "not measured" in choice.reason
    still = plausible_log(100)
    still[49]["drift"] = {"subject": 0.0, "unrelated": 0.0}
    assert "not measured" in recommended_snapshot(summary_of(tmp_path, still)).reason


def test_a_short_run_has_no_say(tmp_path: Path) -> None:
    lines = plausible_log(39)
    lines[9]["drift"], lines[38]["drift"] = {"subject": 1.0, "unrelated": 0.1}, {"subject": 1.0, "unrelated": 0.9}
    choice = recommended_snapshot(summary_of(tmp_path, lines))
    assert choice.step == 39 and "little to choose from" in choice.reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ratios": (0.1, 0.15)},
        {"ratios": (0.1, 0.6)},
        {"ratios": (0.5, 0.6)},
        {"ratios": (0.1, 0.6), "rise": 10.0, "ceiling": (0.99, 0.97)},
        {"rise": 10.0, "ceiling": (0.99, 0.97)},
    ],
)
def test_the_verdict_never_names_another_snapshot(tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = summary_of(tmp_path, plausible_log(400, **changes))
    choice, words = recommended_snapshot(summary), paragraph(summary)
    assert choice.reason.endswith(UNSEEN)
    named = re.search(r"snapshot of step (\d+)", words)
    if named:
        assert int(named[1]) == choice.step < 400
    assert bool(named) == (choice.step < 400)

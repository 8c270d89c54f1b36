"""Which snapshot is recommended: the rule at its edges, its honesty, and that the verdict says the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from apt_train.config import TrainConfig
from apt_train.verdict.recommend import UNPROVEN, last_before_rising, recommended_snapshot
from apt_train.verdict.run_log import log_arrays
from apt_train.verdict.run_summary import RISE, Summary, summarize
from apt_train.verdict.words import paragraph
from tests.synthetic_run import Line, plausible_log, write_run


def summary_of(folder: Path, lines: list[Line]) -> Summary:
    write_run(folder, lines)
    steps = len(lines)
    snapshots = list(range(50, steps + 1, 50))
    return summarize(log_arrays(folder / "log.jsonl"), TrainConfig(class_word="toy", steps=steps), snapshots=snapshots)


def with_ratios(folder: Path, ratios: list[float], steps: int = 0) -> Summary:
    """A run with a snapshot every 50 steps, whose drift had these ratios."""
    lines = plausible_log(steps or 50 * len(ratios), ceiling=(0.6, 0.2))
    for number, ratio in enumerate(ratios, start=1):
        lines[50 * number - 1]["drift"] = {"subject": 0.01, "unrelated": 0.01 * ratio, "ratio": ratio}
    return summary_of(folder, lines)


def test_the_last_snapshot_before_the_ratio_rose(tmp_path: Path) -> None:
    choice = recommended_snapshot(with_ratios(tmp_path, [0.2, 0.1, 0.28, 0.35, 0.5]))
    assert choice.step == 150 and "0.50 at step 250" in choice.reason and "lowest 0.10" in choice.reason


def test_what_the_rule_compares_is_a_factor_and_no_level(tmp_path: Path) -> None:
    ratios = [0.2, 0.1, 0.28, 0.35, 0.5]
    scaled = [recommended_snapshot(with_ratios(tmp_path / str(k), [k * r for r in ratios])).step for k in (0.1, 5)]
    assert scaled == [150, 150]


def test_a_ratio_that_came_down_again_counts_and_the_limit_itself_has_not_risen(tmp_path: Path) -> None:
    assert recommended_snapshot(with_ratios(tmp_path, [0.1, 0.4, 0.2, 0.4])).step == 150
    assert recommended_snapshot(with_ratios(tmp_path, [0.1, 0.1 * RISE - 1e-9, 0.1 * RISE + 1e-6])).step == 100


def test_a_high_start_is_no_rise(tmp_path: Path) -> None:
    """As rounding makes it in half precision, where little has moved."""
    choice = recommended_snapshot(with_ratios(tmp_path, [0.9, 0.5, 0.3, 0.4]))
    assert choice.step == 200 and "has not risen 3-fold" in choice.reason


def test_a_snapshot_that_is_gone_is_not_recommended(tmp_path: Path) -> None:
    summary = dataclasses.replace(with_ratios(tmp_path, [0.1, 0.15, 0.2, 0.5]), snapshots=[50, 100, 200])
    assert recommended_snapshot(summary).step == 100
    none_left = recommended_snapshot(dataclasses.replace(summary, snapshots=[200]))
    assert none_left.step == 200 and "rose more than 3-fold" in none_left.reason and "is left" in none_left.reason
    assert last_before_rising(dataclasses.replace(summary, snapshots=[200])) is None


def test_steps_after_the_last_measured_snapshot_are_said_to_be_such(tmp_path: Path) -> None:
    choice = recommended_snapshot(with_ratios(tmp_path, [0.1, 0.12], steps=120))
    assert choice.step == 120 and "0.12 at step 100" in choice.reason


def test_with_less_than_two_measures_simply_the_last(tmp_path: Path) -> None:
    never = recommended_snapshot(summary_of(tmp_path / "a", plausible_log(200, rise=50.0, ceiling=(0.99, 0.97))))
    assert never.step == 200 and "not measured at two snapshots" in never.reason
    once = recommended_snapshot(with_ratios(tmp_path / "b", [0.9]))
    assert once.step == 50 and "not measured at two snapshots" in once.reason
    still = plausible_log(100)
    for step in (50, 100):
        still[step - 1]["drift"] = {"subject": 0.0, "unrelated": 0.0, "ratio": 0.0}
    assert "not measured at two snapshots" in recommended_snapshot(summary_of(tmp_path / "c", still)).reason


def test_a_short_run_has_no_say(tmp_path: Path) -> None:
    lines = plausible_log(39)
    for step, ratio in ((9, 0.1), (39, 0.9)):
        lines[step - 1]["drift"] = {"subject": 1.0, "unrelated": ratio, "ratio": ratio}
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
    assert choice.reason.endswith(UNPROVEN)
    named = re.search(r"snapshot of step (\d+)", words)
    if named:
        assert int(named[1]) == choice.step < 400
    assert bool(named) == (choice.step < 400)

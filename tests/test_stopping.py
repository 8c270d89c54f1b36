"""A run that ends by itself: the two rules, that it is finished then and known as such, and how it goes on.

Not here: the node's side on the real host (`tests/host/test_presets.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from apt_train import cli
from apt_train.config import OutputConfig, TrainConfig
from apt_train.errors import InputError
from apt_train.events import TrainResult
from apt_train.sample.drift import Drift, DriftWatch
from apt_train.training.stopping import Ending, ended_by_itself, ending

from .training import Recorder, run, same_weights

RISING = [0.1, 0.2, 0.15, 0.31, 0.4, 0.5, 0.6, 0.7]  # more than three times its lowest at the fourth
SETTINGS: dict[str, Any] = {"steps": 16, "snapshot_every": 2, "identifier_mode": "word"}


def measured(ratios: Sequence[float] = (), subjects: Sequence[float] = ()) -> list[dict[str, float]]:
    """Of snapshots every 100 steps."""
    count = max(len(ratios), len(subjects))
    return [
        {"step": 100 * (i + 1), "subject": [*subjects, *[1.0] * count][i], "ratio": [*ratios, *[0.1] * count][i]}
        for i in range(count)
    ]


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs whose drift ratio rises as above, by snapshot; the list grows by a number for each that is measured."""
    asked: list[int] = []

    def measure(self: DriftWatch) -> Drift:
        asked.append(len(asked))
        return Drift(1.0, RISING[len(asked) - 1], RISING[len(asked) - 1])

    monkeypatch.setattr(DriftWatch, "measure", measure)
    return asked


# ---- the rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "step", "recommended"),
    [
        ([0.1, 0.2, 0.31], 300, 200),
        ([0.1, 0.3, 0.3], None, None),  # three times, and not more
        ([0.5, 0.1, 0.2, 0.4, 0.05], 400, 300),  # at the first that has risen, whatever comes later
        ([0.3, 0.2, 0.1], None, None),
        ([0.1], None, None),
        ([-1.0, 2.0], 200, 100),  # no run measures that, but a log can be edited
        ([], None, None),
    ],
)
def test_drift_ends_at_the_first_snapshot_that_has_risen(ratios: list[float], step: Any, recommended: Any) -> None:
    found = ending("drift", measured(ratios))
    assert (found and (found.step, found.recommended)) == (step and (step, recommended))
    assert ending("never", measured(ratios)) is None and ending("settled", measured(ratios[:3])) is None


@pytest.mark.parametrize(
    ("subjects", "step"),
    [
        ([1.0, 2.0, 2.1, 2.15], 400),  # 200 and 400 differ by less than a tenth
        ([1.0, 2.0, 2.1, 2.3, 2.15], 500),  # 500 is compared with 200
        ([1.0, 1.0, 1.0], None),  # too few
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None),
        ([0.0, 0.0, 0.0, 0.0], None),  # nothing was learned yet
        ([1.0, 2.0, 1.9, 1.85], 400),
        ([1.0, 2.0, 1.9, 1.5], None),  # it moves back
    ],
)
def test_settled_ends_where_half_the_steps_changed_nothing(subjects: list[float], step: Any) -> None:
    found = ending("settled", measured(subjects=subjects))
    assert (found and found.step) == step and (found is None or found.recommended == step)
    assert ending("drift", measured(subjects=subjects)) is None


def test_what_is_said_names_the_step_the_reason_and_the_way_on() -> None:
    assert ended_by_itself(Ending(300, "the drift ratio rose", 200), 2000) == (
        "The run ended by itself at step 300 of 2000: the drift ratio rose. Look first at the snapshot of step 200. To "
        "train on, set stop to never."
    )


def test_of_a_run_that_had_trained_on_the_step_of_its_lora_is_said() -> None:
    told = ended_by_itself(Ending(300, "the drift ratio rose", 200), 2000, 500)
    assert told == (
        "The run would have ended by itself at step 300 of 2000: the drift ratio rose. It had trained on to step 500 "
        "by then, so its LoRA is that of step 500. Look first at the snapshot of step 200. To train on, set stop to "
        "never."
    )
    assert ended_by_itself(Ending(300, "x", 200), 2000, 300) == ended_by_itself(Ending(300, "x", 200), 2000)


def test_a_rule_without_anything_to_look_at_is_refused() -> None:
    without: list[dict[str, Any]] = [{"watch_drift": False}, {"snapshot_every": 0}]
    for settings in without:
        with pytest.raises(InputError, match="^stop is drift: switch watch_drift on and set snapshot_every above 0"):
            OutputConfig(stop="drift", **settings)
    with pytest.raises(InputError, match="^stop is 'soon': choose one of never, drift, settled.$"):
        OutputConfig(stop=cast("Any", "soon"))


def test_it_is_no_part_of_what_a_run_is() -> None:
    plain = TrainConfig(class_word="toy")
    assert replace(plain, output=OutputConfig(stop="settled")).identity() == plain.identity()


@pytest.mark.usefixtures("no_report")
def test_prompts_that_all_name_the_class_word_are_told() -> None:
    recorder = Recorder()
    result = run(steps=2, snapshot_every=1, stop="drift", drift_prompts=("a toy",), on_event=recorder)
    assert result.steps_done == 2 and any("the run never stops early" in text for text in result.notices)


@pytest.mark.parametrize(("stop", "needed"), [("drift", 2), ("settled", 4)])
def test_a_rule_that_so_few_snapshots_never_reach_is_told(stop: str, needed: int) -> None:
    """What is made at the last step ends nothing."""

    def told(steps: int) -> list[str]:
        return [text for text in run(steps=steps, snapshot_every=2, stop=stop).notices if "never stops" in text]

    assert told(2 * needed + 1) == []
    (note,) = told(2 * needed)
    assert f"stop is {stop}, which compares {needed} snapshots, but {needed - 1} will be made before" in note


# ---- a run -------------------------------------------------------------------------------------------------------


def ended(folder: Path, **more: Any) -> TrainResult:
    return run(**SETTINGS, stop="drift", output_dir=folder, **more)


def test_a_run_ends_by_itself_as_a_finished_one(tmp_path: Path, rising: list[int]) -> None:
    """At the fourth snapshot, with the LoRA of a run of so many steps, and the reason where the user looks."""
    result = ended(tmp_path / "run")
    assert (result.steps_done, result.stopped) == (8, False) and len(rising) == 4
    (told,) = [text for text in result.notices if "by itself" in text]
    assert "at step 8 of 16: the drift ratio is 0.31, more than 3 times its lowest of 0.10" in told
    assert "the snapshot of step 6" in told
    assert result.report is not None and told in result.report.read_text(encoding="utf-8")
    folders = sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir())
    assert folders == ["step_000002", "step_000004", "step_000006", "step_000008"], "the recommended one is kept"
    rising.clear()
    assert same_weights(result, run(**{**SETTINGS, "steps": 8}))


@pytest.mark.usefixtures("no_report")
def test_resumed_it_trains_nothing_and_says_so_again(tmp_path: Path, rising: list[int]) -> None:
    first = ended(tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    recorder = Recorder()
    again = ended(tmp_path, resume=True, on_event=recorder)
    assert again.steps_done == 8 and same_weights(first, again) and not recorder.steps
    assert (tmp_path / "log.jsonl").read_bytes() == log and len(rising) == 4
    assert [text for text in again.notices if "by itself" in text] == [t for t in first.notices if "by itself" in t]


@pytest.mark.usefixtures("no_report")
def test_with_never_it_goes_on_bit_for_bit(tmp_path: Path, rising: list[int]) -> None:
    ended(tmp_path / "run")
    on = run(**SETTINGS, stop="never", output_dir=tmp_path / "run", resume=True)
    rising.clear()
    assert on.steps_done == 16 and same_weights(on, run(**SETTINGS))


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_has_ended_where_another_rule_ends_it(tmp_path: Path, rising: list[int]) -> None:
    """And a run at its own last step has not ended by itself."""
    run(**SETTINGS, output_dir=tmp_path / "run")
    longer = run(**{**SETTINGS, "steps": 20}, stop="drift", output_dir=tmp_path / "run", resume=True)
    (told,) = [text for text in longer.notices if "by itself" in text]
    assert longer.steps_done == 16 and "would have ended by itself at step 8 of 20" in told
    assert "so its LoRA is that of step 16" in told
    rising.clear()
    last = run(**{**SETTINGS, "steps": 8}, stop="drift", output_dir=tmp_path / "short")
    assert last.steps_done == 8 and not any("by itself" in text for text in last.notices)


@pytest.mark.usefixtures("no_report")
def test_a_run_broken_off_before_it_measured_ends_when_it_has(tmp_path: Path, rising: list[int]) -> None:
    """The drift of the step it goes on from is measured first, and counts."""
    ended(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    del lines[-1]["drift"]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    del rising[3:]
    recorder = Recorder()
    assert ended(tmp_path, resume=True, on_event=recorder).steps_done == 8 and not recorder.steps


def test_the_command_line_resumes_with_another_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rising: list[int]
) -> None:
    ended(tmp_path)
    asked: list[TrainConfig] = []
    config = json.loads((tmp_path / "config.json").read_text())
    config["inputs"] = {"checkpoint": str(tmp_path), "images": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(cli, "_train", lambda config, *_, **__: asked.append(config) or 0)
    assert cli.main(["resume", str(tmp_path)]) == cli.main(["resume", str(tmp_path), "--stop", "never"]) == 0
    assert [one.output.stop for one in asked] == ["drift", "never"]
    assert cli.main(["resume", str(tmp_path), "--stop", "soon"]) == 2

"""What takes its time and is no step says so, piece by piece; and a run can be broken off at each piece."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from apt_train.console.progress import Progress
from apt_train.events import BusyEvent, Event, StepEvent, StopTraining, TrainResult, Work
from tests.training import Recorder, run, same_weights

SETTINGS: dict[str, Any] = {"steps": 4, "snapshot_every": 2, "preview_every": 2, "drift_prompts": ("a dog",)}
IN_TRAIN: list[Work] = [what for what in get_args(Work) if what not in ("weights", "check-up")]  # no part of `train`
STOP, CANCEL = "stop", "cancel"

pytestmark = pytest.mark.usefixtures("no_report")


class Cancelled(BaseException):
    """As hosts raise it: no Exception."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[Event]]:
    recorder = Recorder()
    result = run(output_dir=tmp_path_factory.mktemp("unbroken") / "run", on_event=recorder, **SETTINGS)
    return result, recorder.events


def of(events: list[Event], what: Work) -> list[BusyEvent]:
    return [event for event in events if isinstance(event, BusyEvent) and event.what == what]


def test_every_kind_of_work_is_told_piece_by_piece(unbroken: tuple[TrainResult, list[Event]]) -> None:
    _, events = unbroken
    for what in IN_TRAIN:
        told = of(events, what)
        assert told, what
        for event in told:
            assert event.text and (event.done < event.total or event.total == event.done == 0)
            assert (f"{event.done + 1} of {event.total}" in event.text) == (event.total > 1)
        rounds = [event.total or 1 for event in told if event.done == 0]
        assert len(told) == sum(rounds), f"{what}: as many pieces as were announced"
    assert [(event.done, event.total) for event in of(events, "pictures")] == [(0, 3), (1, 3), (2, 3)]
    assert of(events, "variants")[-1].text == f"encoding augmented pictures {of(events, 'variants')[-1].total} of 12"


def test_the_step_that_has_ended_goes_with_it(unbroken: tuple[TrainResult, list[Event]]) -> None:
    ended = 0
    for event in unbroken[1]:
        if isinstance(event, StepEvent):
            ended = event.step
        elif isinstance(event, BusyEvent):
            assert event.step == ended + (event.what == "drift")


def breaks_off(what: Work, error: BaseException, at: int = 1) -> Any:
    """A callback that raises at a piece of one kind of work, the first time it comes to it."""

    def hear(event: Event) -> None:
        if isinstance(event, BusyEvent) and event.what == what and event.done == min(at, max(0, event.total - 1)):
            raise error

    return hear


def error_of(how: str) -> BaseException:
    return StopTraining() if how == STOP else Cancelled()


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("pictures", STOP), ("pictures", CANCEL), ("variants", STOP), ("variants", CANCEL), ("report", STOP),
        *(pytest.param(what, STOP, marks=pytest.mark.slow) for what in ("model", "captions", "drift", "previews")),
    ],
)  # fmt: skip
def test_a_run_is_broken_off_at_any_of_it_and_ends_in_the_same_bits(
    tmp_path: Path, what: Work, how: str, unbroken: tuple[TrainResult, list[Event]]
) -> None:
    folder, error = tmp_path / "run", error_of(how)
    stops = how == STOP
    with contextlib.nullcontext() if stops else pytest.raises(Cancelled):
        result = run(output_dir=folder, on_event=breaks_off(what, error), **SETTINGS)
        assert result.stopped == (what != "report")
        assert result.steps_done == steps_logged(folder)
        assert bool(result.lora) == bool(result.steps_done)
    if what in ("pictures", "model", "captions"):
        assert not folder.exists(), "nothing is written before the run is ready"
    resumed = run(output_dir=folder, resume=folder.exists(), **SETTINGS)
    assert resumed.steps_done == 4 and same_weights(resumed, unbroken[0])


def steps_logged(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.mark.parametrize(
    ("what", "how"),
    [("variants", STOP), *(pytest.param(what, CANCEL, marks=pytest.mark.slow) for what in ("pictures", "variants"))],
)
def test_a_resumed_run_broken_off_while_it_gets_ready_is_left_as_it_was(
    tmp_path: Path, what: Work, how: str, unbroken: tuple[TrainResult, list[Event]]
) -> None:
    def cancel(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(output_dir=tmp_path, on_event=cancel, **SETTINGS)
    state = json.loads((tmp_path / "snapshots" / "step_000003" / "state.json").read_text())
    assert state["variants"], "else no variant is encoded at the start"
    before = contents(tmp_path)
    with contextlib.nullcontext() if how == STOP else pytest.raises(Cancelled):
        stopped = run(output_dir=tmp_path, resume=True, on_event=breaks_off(what, error_of(how)), **SETTINGS)
        assert (stopped.steps_done, stopped.stopped, stopped.run_dir, stopped.lora) == (3, True, tmp_path, {})
    assert contents(tmp_path) == before
    assert same_weights(run(output_dir=tmp_path, resume=True, **SETTINGS), unbroken[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_terminal_says_it_and_stops_there(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("cpu") as progress:

        def hear(event: Event) -> None:
            progress.stop_requested = isinstance(event, BusyEvent) and event.what == "pictures" and event.done == 1
            progress(event)

        result = run(on_event=hear, **SETTINGS)
    assert result.stopped and result.steps_done == 0
    assert "encoding pictures 1 of 3" in capsys.readouterr().err


def test_the_terminals_line_goes_when_the_steps_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("cpu") as progress:
        run(on_event=progress, **{**SETTINGS, "preview_every": 0})
    said = capsys.readouterr().err
    assert "measuring the drift from the prior 1 of " in said and "4/4" in said

"""What the browser is told of a run: messages in order, none lost; the session's list; the curves of a run's folder.

Not here: the host's own server and sockets, and the page that draws.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from apt_train.config import AptConfig, TrainConfig
from apt_train.events import StepEvent
from apt_train.run.config_file import FORMAT
from apt_train.run.curves import point_of, run_curves, thin_out
from tests.damaged_runs import DAMAGES, Damage, added, line
from tests.node_modules import node_module
from tests.synthetic_run import plausible_log, write_run


@pytest.fixture(scope="module")
def imported() -> Iterator[Any]:
    with node_module("live") as module:
        yield module


@pytest.fixture
def live(imported: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, in a session without runs."""
    monkeypatch.setattr(imported, "_SESSION", imported.Session())
    return imported


def event(step: int, **changes: Any) -> StepEvent:
    values = {
        "step": step, "total": 100, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-4, "timestep": [7], "gamma": [0.5, 0.25],
        "terms": {"denoising": 0.25, "stabilization": None, "alignment": 0.125},
    }  # fmt: skip
    return StepEvent(**{**values, **changes})


class Heard:
    """A sender that remembers, and a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0

    def send(self, name: str, message: dict[str, Any]) -> None:
        json.dumps(message, allow_nan=False)
        self.messages.append((name, message))

    def steps(self) -> list[int]:
        return [p["step"] for name, message in self.messages if name == "apt_train.steps" for p in message["points"]]


def live_run(live: Any, heard: Heard) -> Any:
    return live.LiveRun(
        run_id="toy_0123456789ab", node_id="5:12", prompt_id="p", total=100, bins=2,
        send=heard.send, clock=lambda: heard.now,
    )  # fmt: skip


# --- messages -----------------------------------------------------------------------------------------------------


def test_a_run_is_told_from_start_to_finish(live) -> None:
    heard = Heard()
    run = live_run(live, heard)
    run.start(0)
    run.step(event(1), None)
    heard.now = 1.0
    run.step(event(2), 98.0)
    run.finish("done", 2)
    who = {"run": "toy_0123456789ab", "node": "5:12", "prompt_id": "p"}
    terms = {"loss": 0.5, "denoising": 0.25, "stabilization": None, "alignment": 0.125}
    point = {**terms, "gamma": [0.5, 0.25], "drift_ratio": None}
    assert heard.messages == [
        ("apt_train.started", {**who, "total": 100, "first_step": 0, "bins": ["0.0-0.5", "0.5-1.0"]}),
        ("apt_train.steps", {**who, "points": [{"step": 1, **point}], "seconds_left": None}),
        ("apt_train.steps", {**who, "points": [{"step": 2, **point}], "seconds_left": 98.0}),
        ("apt_train.finished", {**who, "state": "done", "step": 2}),
    ]


def test_steps_are_sent_a_few_times_a_second_and_none_is_lost(live) -> None:
    heard = Heard()
    run = live_run(live, heard)
    run.start(0)
    for step in range(1, 101):
        heard.now = step * 0.03
        run.step(event(step), 1.0)
    sent = [name for name, _ in heard.messages].count("apt_train.steps")
    assert 10 <= sent <= 3.0 / live.INTERVAL + 1
    assert heard.steps() == list(range(1, heard.steps()[-1] + 1))
    run.finish("stopped", 100)
    assert heard.steps() == list(range(1, 101))
    assert heard.messages[-1][0] == "apt_train.finished" and heard.messages[-1][1]["state"] == "stopped"


def test_nothing_to_flush_sends_no_empty_steps(live) -> None:
    heard = Heard()
    run = live_run(live, heard)
    run.start(40)
    run.finish("failed", 40)
    assert [name for name, _ in heard.messages] == ["apt_train.started", "apt_train.finished"]


def test_a_found_run_is_one_message(live) -> None:
    heard = Heard()
    live_run(live, heard).found(40)
    ((name, message),) = heard.messages
    assert name == "apt_train.found" and message["step"] == 40 and message["total"] == 100 and len(message["bins"]) == 2


def test_what_is_no_number_is_null() -> None:
    point = point_of(
        event(3, loss=float("nan"), terms={"denoising": float("inf")}, gamma=[float("nan"), 0.123456]).log_line()
    )
    assert point["loss"] is None and point["denoising"] is None and point["gamma"] == [None, 0.1235]


# --- the session --------------------------------------------------------------------------------------------------


def test_the_session_lists_its_runs_newest_first(live) -> None:
    session = live.Session()
    for name in ("a", "b"):
        who = {"run": name, "node": "1", "prompt_id": "p", "workflow": "w"}
        session.note("apt_train.started", {**who, "total": 9, "first_step": 0, "bins": []})
        session.note("apt_train.steps", {**who, "points": [{"step": 1}, {"step": 2}], "seconds_left": 1.0})
    session.note("apt_train.finished", {**who, "state": "stopped", "step": 2})
    b = {"run": "b", "node": "1", "prompt_id": "p", "workflow": "w", "total": 9, "state": "stopped", "step": 2}
    assert session.runs() == [b, {**b, "run": "a", "state": "running"}]
    again = {"run": "a", "node": "1", "prompt_id": "q", "total": 12, "first_step": 2, "bins": []}
    session.note("apt_train.started", again)
    listed = [(run["run"], run["state"], run["total"]) for run in session.runs()]
    assert listed == [("a", "running", 12), ("b", "stopped", 9)]
    session.note("apt_train.found", {**again, "run": "b", "total": 9, "step": 9})
    listed = [(run["run"], run["state"], run["step"]) for run in session.runs()]
    assert listed == [("b", "done", 9), ("a", "running", 2)]


def test_the_sender_names_the_workflow_and_the_page(live, monkeypatch) -> None:
    """The workflow's id is read from the prompt that is running, once."""
    sent: list[Any] = []
    queued = (1, "p", {}, {"extra_pnginfo": {"workflow": {"id": "w1"}}}, [])
    asked: list[int] = []
    queue = SimpleNamespace(get_current_queue_volatile=lambda: (asked.append(1), ([queued], []))[1])
    server = SimpleNamespace(client_id="page", prompt_queue=queue, send_sync=lambda *message: sent.append(message))
    module: Any = ModuleType("server")
    module.PromptServer = SimpleNamespace(instance=server)
    monkeypatch.setitem(sys.modules, "server", module)
    send = live.host_sender()
    message = {"run": "toy_1", "node": "3", "prompt_id": "p", "total": 5, "first_step": 0, "bins": []}
    send("apt_train.started", message)
    send("apt_train.finished", {**message, "state": "done", "step": 5})
    assert [(name, told["workflow"], page) for name, told, page in sent] == [
        ("apt_train.started", "w1", "page"),
        ("apt_train.finished", "w1", "page"),
    ]
    assert len(asked) == 1 and live._SESSION.runs()[0]["workflow"] == "w1"


def test_a_prompt_without_a_workflow_has_none(live) -> None:
    assert live.workflow_of("p", []) is None
    for extra in ({}, {"extra_pnginfo": None}, {"extra_pnginfo": {}}, {"extra_pnginfo": {"workflow": None}}):
        assert live.workflow_of("p", [(1, "p", {}, extra)]) is None
    assert live.workflow_of("p", [(1, "q", {}, {"extra_pnginfo": {"workflow": {"id": "w"}}})]) is None


# --- curves -------------------------------------------------------------------------------------------------------


def run_folder(root: Path, name: str, steps: int, total: int | None = None) -> Path:
    config = TrainConfig(class_word="toy", steps=total or steps, apt=AptConfig(bins=5))
    folder = write_run(root / name, plausible_log(steps, bins=5), config)
    settings = {"format": FORMAT, "config": config.to_dict(), "num_timesteps": 500}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_curves_are_read_from_the_log(live, tmp_path) -> None:
    run_folder(tmp_path, "toy_1", 30, total=40)
    curves = live.curves_of(tmp_path, "toy_1")
    assert (curves["run"], curves["state"], curves["step"], curves["total"]) == ("toy_1", "stopped", 30, 40)
    assert curves["bins"] == ["0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0"]
    assert [point["step"] for point in curves["points"]] == list(range(1, 31))
    later = live.curves_of(tmp_path, "toy_1", after=27)
    assert [point["step"] for point in later["points"]] == [28, 29, 30]
    nothing_new = live.curves_of(tmp_path, "toy_1", after=30)
    assert nothing_new["points"] == [] and nothing_new["step"] == 30
    assert live.curves_of(tmp_path, "toy_1", after=99)["step"] == 30  # the log was cut back
    run_folder(tmp_path, "toy_2", 30)
    assert live.curves_of(tmp_path, "toy_2")["state"] == "done"


def test_a_log_being_written_is_read_as_far_as_it_goes(tmp_path) -> None:
    folder = run_folder(tmp_path, "toy_1", 10)
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert [point["step"] for point in run_curves(folder)["points"]] == list(range(1, 10))
    log.unlink()
    assert run_curves(folder)["points"] == []


def test_long_runs_are_thinned_out_without_losing_the_end(tmp_path) -> None:
    points = run_curves(run_folder(tmp_path, "toy_1", 1234))["points"]
    steps = [point["step"] for point in points]
    assert len(points) == 500 and steps[-1] == 1234 and steps == sorted(set(steps))
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= 3


def test_neighbours_run_together_by_their_mean() -> None:
    points = [point_of(event(step, loss=float(step), gamma=[step / 10]).log_line()) for step in range(1, 6)]
    points[0]["alignment"] = points[3]["alignment"] = points[2]["alignment"] = None
    thin = thin_out(points, 3)
    assert [(p["step"], p["loss"], p["alignment"], p["gamma"]) for p in thin] == [
        (2, 1.5, 0.125, [0.2]),
        (4, 3.5, None, [0.4]),
        (5, 5.0, 0.125, [0.5]),
    ]
    assert thin_out(points, 5) is points


def test_the_newest_drift_ratio_outlives_thinning() -> None:
    measured = {2: {"subject": 0.02, "unrelated": 0.004, "ratio": 0.2}}
    points = [point_of(event(step, drift=measured.get(step)).log_line()) for step in range(1, 6)]
    assert [point["drift_ratio"] for point in points] == [None, 0.2, None, None, None]
    assert [point["drift_ratio"] for point in thin_out(points, 3)] == [0.2, None, None]


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../outside", "/etc", "a/b", "toy_1/snapshots", "a\\b", "toy 1", "toy_1\n", "x" * 201]
)
def test_only_names_of_runs_are_looked_for(live, tmp_path, name) -> None:
    root = tmp_path / "apt_train"
    run_folder(root, "toy_1", 3)
    run_folder(tmp_path, "outside", 3)
    with pytest.raises(live.InputError, match="no such run"):
        live.folder_of(root, name)


def test_only_folders_directly_inside_are_opened(live, tmp_path) -> None:
    root = tmp_path / "apt_train"
    inside = run_folder(root, "toy_1", 3)
    outside = run_folder(tmp_path, "outside", 3)
    (root / "link").symlink_to(outside, target_is_directory=True)
    (root / "file").write_text("")
    assert live.folder_of(root, "toy_1") == inside
    for name in ("link", "file", "missing"):
        with pytest.raises(live.InputError, match="no such run"):
            live.folder_of(root, name)
    (tmp_path / "elsewhere").symlink_to(root, target_is_directory=True)  # the host's output folder may be a link
    assert live.folder_of(tmp_path / "elsewhere", "toy_1").name == "toy_1"


def test_a_folder_without_a_run_is_refused_in_words(live, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(live.InputError, match="holds no run"):
        live.curves_of(tmp_path, "empty")


# --- damaged folders ----------------------------------------------------------------------------------------------

FLOODS = {
    "newlines": b"\n" * 20_000_000,
    "short lines": b"{}\n" * 8_000_000,
    "one step again and again": b'{"step":7}\n' * 2_000_000,
    "steps and a drift": b'{"step":7,"drift":{"ratio":1}}\n' * 1_000_000,
    "long lines": (b'{"step": 7, "gamma": [' + b"1," * 500_000 + b"1]}\n") * 20,
    "one line": b"9" * 60_000_000,
    "deep lines": (b"[" * 1000 + b"\n") * 20_000,
}


def answered(live: Any, root: Path, after: str = "") -> tuple[int, dict[str, Any]]:
    """As the route answers, in less than 4 seconds of computing."""
    began = time.process_time()
    status, text = live.answer_of(root, "toy_1", after)
    assert time.process_time() - began < 4
    return status, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.skipif(os.name == "nt", reason="pipes, devices and links")
@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_a_damaged_run_is_answered_with_what_can_be_read_or_with_a_sentence(live, tmp_path, damage: Damage) -> None:
    damage(run_folder(tmp_path, "toy_1", 30))
    for after in ("", "12", "9" * 5000):
        status, answer = answered(live, tmp_path, after)
        if status == 200:
            assert answer["total"] >= 1 and 0 <= answer["step"] and len(answer["bins"]) <= 1000
            steps = [point["step"] for point in answer["points"]]
            assert steps == sorted(set(steps)) and len(steps) <= 500
        else:
            assert status == 404 and answer["error"].endswith(".") and "\n" not in answer["error"]


@pytest.mark.parametrize("flood", [pytest.param(flood, id=name) for name, flood in FLOODS.items()])
def test_a_log_that_is_a_flood_is_answered_in_time(live, tmp_path, flood: bytes) -> None:
    """With what is whole in it; or with a sentence, if more lines are broken than any run leaves behind."""
    added(flood)(run_folder(tmp_path, "toy_1", 30))
    status, answer = answered(live, tmp_path)
    if flood.count(b"\n") <= 10_000:
        assert status == 200 and answer["step"] == 30
    else:
        assert status == 404 and answer["error"].startswith("log.jsonl is damaged all over: ")


def test_what_is_whole_in_a_damaged_log_is_shown(live, tmp_path) -> None:
    """Broken lines, at whatever place, cost no other line; of two lines of a step the later one counts."""
    folder = run_folder(tmp_path, "toy_1", 30)
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    again = line(step=30, loss=7.0)
    lines[10:10] = [b"\0" * 100 + b"\n", b"[" * 5000 + b"\n", line(step="11"), line(loss=[]), b'{"step": 4\n']
    (folder / "log.jsonl").write_bytes(b"".join([*lines, again, line(step=10**12), b"\xff\n", b'{"st']))
    answer = answered(live, tmp_path)[1]
    assert [point["step"] for point in answer["points"]] == list(range(1, 31)) and answer["step"] == 30
    assert answer["points"][-1]["loss"] == 7.0


def test_a_folder_that_may_not_be_read_is_no_run(live, tmp_path, monkeypatch) -> None:
    """The system's own answer is simulated: a superuser may read anything."""

    def refuse(path: Path, *_: Any, **__: Any) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    run_folder(tmp_path, "toy_1", 3)
    for name in ("open", "is_file", "is_dir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            assert answered(live, tmp_path)[0] == 404

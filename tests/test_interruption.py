"""Signals: the first saves the run, the second aborts it, and nothing ends with a traceback or with work lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import apt_train.data.dataset
import apt_train.families.load
import apt_train.report
import apt_train.training.finish
import apt_train.training.loop
import apt_train.training.setup
from apt_train import cli
from apt_train.console import interruption
from tests.test_cli import arguments

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process there cannot send itself these signals")
SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"]


def code_of(name: str) -> int:
    return 128 + getattr(signal, name)


@pytest.fixture
def command(model: Path, photos: Path, tmp_path: Path) -> list[str]:
    return [*arguments(model, photos, tmp_path / "out"), "--no-watch-drift"]


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """Under `nohup` a run ignores SIGHUP, as it should. The tests may be started so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def handlers(no_nohup: None) -> Iterator[None]:
    """A test leaves the handlers as it found them. pytest's own process may have SIGINT switched off by a shell."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    assert {number: signal.getsignal(number) for number in numbers} == before


def send(*names: str) -> None:
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))


def when(
    monkeypatch: pytest.MonkeyPatch, home: Any, name: str, act: Callable[[], None], *, after: bool = False
) -> None:
    """Do something right before, or right after, the function of that name is called."""
    plain = getattr(home, name)

    def called(*given: Any, **named: Any) -> Any:
        if not after:
            act()
        result = plain(*given, **named)
        if after:
            act()
        return result

    monkeypatch.setattr(home, name, called)


def steps(tmp_path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_one_ends_the_run_after_its_step(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when(monkeypatch, apt_train.training.loop, "optimizer_step", lambda: send(name))
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert "Stopping after this step" in shown.err and "Stopped after 1 step," in shown.out
    assert steps(tmp_path) == [1] and (tmp_path / "out" / "toy_subject.safetensors").exists()
    assert (tmp_path / "out" / "snapshots" / "step_000001" / "state.json").exists()


@pytest.mark.parametrize("name", SIGNALS)
def test_the_second_one_aborts_and_the_last_step_is_saved(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interruption, "_ONE", 0.0)
    heard: list[str] = []

    def twice_in_the_second_step() -> None:
        heard.append(name)
        if len(heard) == 2:
            send(name, name)

    when(monkeypatch, apt_train.training.loop, "optimizer_step", twice_in_the_second_step)
    assert cli.main(command) == code_of(name)
    assert "apt-train: aborted; what was saved before stays." in capsys.readouterr().err
    assert steps(tmp_path) == [1] and (tmp_path / "out" / "snapshots" / "step_000001" / "state.json").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("names", [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGHUP"), ("SIGINT", "SIGHUP")], ids="+".join)
def test_what_comes_twice_at_once_is_one_wish(
    names: tuple[str, str], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout` sends its signal twice, service managers a hang-up behind it, and a window is closed after Ctrl-C."""
    when(monkeypatch, apt_train.training.loop, "optimizer_step", lambda: send(*names))
    assert cli.main(command) == 0 and steps(tmp_path) == [1]


PLACES = {  # the function that is being called when the signal comes
    "pictures": (apt_train.data.dataset, "load_images"),
    "checkpoint": (apt_train.families.load, "load_checkpoint"),
    "preparing": (apt_train.training.setup, "build_streams"),
    "captions": (apt_train.training.setup, "prepare_captions"),
}


@pytest.mark.parametrize(("place", "name"), list(zip(PLACES, [*SIGNALS, "SIGTERM"], strict=True)))
def test_before_the_first_step_there_is_nothing_to_wait_for(
    place: str,
    name: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    when(monkeypatch, *PLACES[place], lambda: send(name))
    assert cli.main(command) == code_of(name)
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1].startswith("apt-train: aborted") and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_a_library_that_makes_another_exception_of_it_is_not_believed(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        try:
            send("SIGTERM")
        except BaseException:
            raise RuntimeError("could not be imported") from None

    monkeypatch.setattr(apt_train.data.dataset, "load_images", load)
    assert cli.main(command) == code_of("SIGTERM")
    assert "could not be imported" not in capsys.readouterr().err


def test_while_the_report_of_a_run_is_drawn(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when(monkeypatch, apt_train.training.finish, "write_report", lambda: send("SIGTERM"))
    assert cli.main([*command, "--steps", "1"]) == 0
    assert "LoRA: " in capsys.readouterr().out and (tmp_path / "out" / "report.md").exists()


@pytest.mark.parametrize("name", SIGNALS)
def test_while_a_report_is_drawn_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apt_train.report, "write_report", lambda folder: send(name))
    assert cli.main(["report", str(tmp_path)]) == code_of(name)
    assert capsys.readouterr().err.startswith("apt-train: aborted")


@pytest.mark.usefixtures("no_report")
def test_what_nohup_has_switched_off_stays_off(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        when(monkeypatch, apt_train.training.loop, "optimizer_step", lambda: send("SIGHUP"))
        assert cli.main(command) == 0 and steps(tmp_path) == [1, 2, 3]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_report")
def test_a_thread_can_train_too(command: list[str], tmp_path: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main([*command, "--steps", "1"])))
    thread.start()
    thread.join()
    assert codes == [0] and steps(tmp_path) == [1]

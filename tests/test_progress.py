"""What a run shows on a terminal, and in a file: every sentence begins on a line of its own.

Not here: a terminal that goes away (`test_terminal`), and what signals do (`test_interruption`).
"""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import apt_train.data.dataset
import apt_train.families.load
import apt_train.training.setup
import apt_train.training.train
from apt_train import cli
from apt_train.console import progress
from apt_train.errors import InputError
from apt_train.events import BusyEvent, StepEvent
from tests.test_cli import arguments


class Screen(io.StringIO):
    """A stream that somebody may watch, and what then stands on it."""

    def __init__(self, watched: bool) -> None:
        super().__init__()
        self.watched = watched

    def isatty(self) -> bool:
        return self.watched

    def lines(self) -> list[str]:
        """A carriage return begins the line again, and what is written then covers what stood there."""
        rows, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", self.getvalue()):
            if piece == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif piece == "\r":
                column = 0
            elif piece == "\x1b[A":
                row -= 1
            else:
                line = rows[row].ljust(column)
                rows[row], column = line[:column] + piece + line[column + len(piece) :], column + len(piece)
        return [line.rstrip() for line in rows]


WATCHED = pytest.mark.parametrize("watched", [True, False], ids=["terminal", "file"])


def watch(watched: bool, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Both streams on one window, as a user has them."""
    shown = Screen(watched)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", shown)
    return shown


def refused(*_: Any, **__: Any) -> Any:
    raise InputError("The thing is wrong: mend it.")


def unreadable(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied", "thing.bin")


def ctrl_c(*_: Any, **__: Any) -> Any:
    signal.raise_signal(signal.SIGINT)


MISHAPS: dict[str, tuple[Callable[..., Any], int]] = {
    "a mistake": (refused, 2),
    "a file": (unreadable, 2),
    "Ctrl-C": (ctrl_c, 130),
}
PLACES = {
    "pictures": (apt_train.data.dataset, "load_images"),
    "weights": (apt_train.families.load, "load_checkpoint"),
    "set-up": (apt_train.training.setup, "build_streams"),
    "the end": (apt_train.training.train, "write_extras"),
}


@WATCHED
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mishap", MISHAPS)
def test_an_error_begins_on_a_line_of_its_own(
    mishap: str, place: str, watched: bool, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, code = MISHAPS[mishap]
    screen = watch(watched, monkeypatch)
    monkeypatch.setattr(*PLACES[place], act)
    got = cli.main([*arguments(model, photos, tmp_path / "out", "--steps", "2"), "--no-watch-drift"])
    if place == "the end" and mishap == "Ctrl-C":  # where all is saved it is a stop; the results follow
        assert got == 0 and any(line.startswith("LoRA: ") for line in screen.lines())
        return
    assert got == code
    said = [line for line in screen.lines() if line]
    assert said[-1].startswith("apt-train: "), said
    assert not any("apt-train: " in line[1:] for line in said)


@WATCHED
def test_everything_that_is_said_in_a_run_begins_on_a_line_of_its_own(
    watched: bool, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = watch(watched, monkeypatch)
    (photos / "again.png").write_bytes((photos / "0.png").read_bytes())
    monkeypatch.setattr(apt_train.training.train, "write_extras", lambda *_: None)
    options = ["--steps", "3", "--snapshot-every", "2", "--preview-every", "1", "--preview-steps", "1"]
    assert cli.main(arguments(model, photos, tmp_path / "out", *options)) == 0
    said = screen.lines()
    for beginning in ("Preview at step 1", "LoRA: ", "In a prompt", "0.png and again.png"):
        assert any(line.startswith(beginning) for line in said), (beginning, said)
    assert any("3/3" in line for line in said)
    if not screen.watched:
        assert "\r" not in screen.getvalue() and "\x1b" not in screen.getvalue()


@WATCHED
@pytest.mark.parametrize(("method", "shown"), [("apt", True), ("dreambooth", False), ("dco", True)])
def test_gamma_is_shown_where_it_is_measured(
    method: str, shown: bool, watched: bool, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere a 0.00 would be taken for a run that does not overfit. DCO runs the prior, and measures it thereby."""
    screen = watch(watched, monkeypatch)
    monkeypatch.setattr(apt_train.training.train, "write_extras", lambda *_: None)
    options = ["--method", method, "--no-watch-drift"]
    assert cli.main(arguments(model, photos, tmp_path / "out", *options)) == 0
    text = screen.getvalue()
    assert ", loss " in text and (", gamma " in text) is shown, text


def test_a_file_gets_a_line_now_and_then_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night's run leaves a log that can be read."""
    screen = watch(False, monkeypatch)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("cpu") as shown:
        for step in range(1, 996):
            for done in range(5):
                shown(BusyEvent("variants", step - 1, done, 5))
            now[0] += 1.0
            shown(StepEvent(step, 1000, 0.5, {"denoising": 0.5}, 1.0, 1e-4, [1], [0.25], seconds=1.0))
    said = screen.getvalue().splitlines()
    assert len(said) < 105 and said[0].startswith("encoding augmented pictures 1 of 5")
    assert said[1].startswith("step 1/1000 [00:01<16:39") and "loss 0.5000, gamma 0.25" in said[1]
    assert said[-1].startswith("step 995/1000")

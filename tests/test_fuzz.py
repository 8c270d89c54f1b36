"""Hostile input ends in success or one sentence: the fuzz run's hand-picked cases and a few drawn ones per target.

Also the run itself: what it calls a finding, and that a hang or an empty memory does not end it. `python dev.py fuzz`
looks further.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from apt_train.errors import InputError
from tests.fuzz.__main__ import main
from tests.fuzz.case import Case
from tests.fuzz.hunt import Hunt
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import Worker

SHORT = [  # hand-picked and drawn cases of a target, about a second of each; the same on every machine
    ("headers", 24, 6),
    ("models", 20, 5),
    ("pictures", 40, 20),
    ("captions", 6, 3),
    ("logs", 30, 8),
    ("states", 3, 1),  # two resumes each
    ("loras", 10, 2),
    ("commands", 14, 4),
    ("runs", 1, 1),  # each case trains three times
]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere cases run in this process")


@pytest.fixture(autouse=True)
def no_network() -> None:
    """Left to the run's own watch, which also sees a look-up whose failure is swallowed."""


@pytest.mark.parametrize(("name", "picked", "drawn"), SHORT)
def test_damage_ends_in_one_sentence(name: str, picked: int, drawn: int) -> None:
    hunt = Hunt(name, TARGETS[name], seed=1)
    hunt.run(examples=drawn, picked=picked)
    assert hunt.tried > drawn
    assert not hunt.found, "\n\n" + hunt.report()


def test_every_target_is_here() -> None:
    assert [name for name, _, _ in SHORT] == list(TARGETS)


# ---- the run itself ------------------------------------------------------------------------------------------


def nothing(folder: Path, case: Case) -> None:
    assert (folder / "data.json").exists()


def refuse(folder: Path, case: Case) -> None:
    raise InputError("data.json is empty: write something into it.")


def crash(folder: Path, case: Case) -> None:
    raise KeyError("x")


def leave(folder: Path, case: Case) -> None:
    raise SystemExit(3)


def two_lines(folder: Path, case: Case) -> None:
    raise InputError("data.json is empty:\nwrite something into it.")


def endless_sentence(folder: Path, case: Case) -> None:
    raise InputError("a" * 5_000)


def sleep(folder: Path, case: Case) -> None:
    time.sleep(60)


def eat(folder: Path, case: Case) -> None:
    _ = [bytearray(50_000_000) for _ in range(32)]


def look_up(folder: Path, case: Case) -> None:
    with contextlib.suppress(Exception):  # as libraries do, to try again
        socket.create_connection(("example.invalid", 80))


def write_elsewhere(folder: Path, case: Case) -> None:
    (folder.parent / "elsewhere").write_text("x")


def warn(folder: Path, case: Case) -> None:
    warnings.warn_explicit("old", DeprecationWarning, "apt_train/x.py", 1, module="apt_train.x")


def die(folder: Path, case: Case) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_sample(folder: Path) -> None:
    (folder / "data.json").write_text('{"size": 3, "parts": [1, 2]}')


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "sample").mkdir()
    write_sample(tmp_path / "sample")
    return tmp_path / "sample"


@LINUX
def test_a_worker_ends_with_its_parent(sample: Path) -> None:
    with Worker(nothing, sample) as worker:
        worker.judge(Case())
        assert worker._pipe is not None
        worker._pipe.close()  # as the system does for a killed process
        worker._process.join(10)
        assert worker._process.exitcode == 0


@LINUX
@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (nothing, None), (refuse, None), (crash, "crash"), (leave, "crash"), (two_lines, "sentence"),
        (endless_sentence, "sentence"), (eat, "memory"), (look_up, "forbidden"), (write_elsewhere, "outside"),
        (warn, "crash"), (die, "died"),
    ],
)  # fmt: skip
def test_what_a_finding_is(run: Callable[[Path, Case], None], kind: str | None, sample: Path) -> None:
    with Worker(run, sample) as worker:
        findings = [worker.judge(Case()), worker.judge(Case())]  # also after a process that died
    assert [finding and finding.kind for finding in findings] == [kind, kind]


@LINUX
def test_a_hang_is_ended_and_the_next_case_runs(sample: Path) -> None:
    with Worker(lambda folder, case: sleep(folder, case) if case.arguments else None, sample, seconds=1) as worker:
        found = worker.judge(Case(arguments=True))
        assert found is not None and found.kind == "hang" and "in sleep" in found.text
        assert worker.judge(Case()) is None


def made_up_target(run: Callable[[Path, Case], None]) -> Any:
    sizes = st.integers(0, 1000).map(lambda size: Case((("json", "data.json", ["size"], "set", str(size)),)))
    return SimpleNamespace(sample=write_sample, cases=lambda folder: sizes, hostile=list, run=run)


def fail_from_100(folder: Path, case: Case) -> None:
    assert json.loads((folder / "data.json").read_text())["size"] < 100


@LINUX
def test_a_finding_is_shrunk_and_its_command_runs_it_again(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(TARGETS, "made_up", made_up_target(fail_from_100))
    hunt = Hunt("made_up", TARGETS["made_up"], seed=3)
    hunt.run(examples=50)
    smallest = Case((("json", "data.json", ["size"], "set", "100"),)).to_json()
    assert len(hunt.found) == 1 and f"python dev.py fuzz made_up --case '{smallest}'" in hunt.report()
    assert main(["made_up", "--case", smallest]) == 1
    assert "AssertionError" in capsys.readouterr().out
    assert main(["made_up", "--case", smallest.replace('"100"', '"99"')]) == 0


@LINUX
def test_the_same_seed_draws_the_same_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> list[str]:
        seen: list[str] = []
        monkeypatch.setattr(Worker, "judge", lambda self, case: seen.append(case.to_json()))
        Hunt("made_up", made_up_target(nothing), seed).run(examples=5)
        return seen

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("edit", "content"),
    [
        (("json", "data.json", ["size"], "set", "1e400"), '{"size": 1e400, "parts": [1, 2]}'),
        (("json", "data.json", ["parts", 1], "delete", ""), '{"size": 3, "parts": [1]}'),
        (("json", "data.json", ["size"], "double", "null"), '{"size": 3, "size": null, "parts": [1, 2]}'),
        (("json", "data.json", ["size"], "rename", "x"), '{"parts": [1, 2], "x": 3}'),
        (("json", "data.json", [], "set", "@nest 3"), "[[[]]]"),
        (("bytes", "data.json", "cut", 0.5, "00"), '{"size": 3, "p'),
        (("line", "data.json", 0, "double", ""), '{"size": 3, "parts": [1, 2]}\n{"size": 3, "parts": [1, 2]}'),
    ],
)
def test_an_edit_does_what_it_says(edit: tuple[Any, ...], content: str, sample: Path, tmp_path: Path) -> None:
    from tests.fuzz.case import lay_out

    lay_out(sample, tmp_path / "case", Case.from_json(Case((edit,)).to_json()))
    assert (tmp_path / "case" / "data.json").read_text() == content
    assert (sample / "data.json").read_text() == '{"size": 3, "parts": [1, 2]}'

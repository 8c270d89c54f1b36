"""Killed at any moment, a run goes on and ends in the same bits, with nothing left over.

The whole folder is compared, byte for byte and hidden files too: LoRA, embedding, log, previews, snapshots, report. Not
here: a run that is stopped or fails by itself (`test_train`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import killed_run
from tests.forked import Forked

KILLED, DONE = -signal.SIGKILL if hasattr(signal, "SIGKILL") else None, 0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

# Moments by the names that `killed_run` gives them, and how many of those that match are let pass.
AIMED = {
    "the config's write": (r"open /DRAFT", 0),
    "the config's move": (r"os\.rename .*/config\.json", 0),
    "the log's first line": (r"open /log\.jsonl", 0),
    "the log's append": (r"open /log\.jsonl", 4),
    "drift, the prior's way": (r"busy drift", 1),
    "drift, the tuned model": (r"busy drift", 27),
    "a snapshot begins": (r"os\.mkdir /snapshots/DRAFT", 0),
    "a snapshot's LoRA": (r"open /snapshots/DRAFT/DRAFT", 0),
    "a snapshot's LoRA moved": (r"os\.rename .*/snapshots/DRAFT/toy_subject\.safetensors", 1),
    "a snapshot's state": (r"os\.rename .*/snapshots/DRAFT/state\.safetensors", 1),
    "a snapshot's name": (r"os\.rename /snapshots/DRAFT /snapshots/step_000004", 0),
    "the last snapshot's name": (r"os\.rename /snapshots/DRAFT /snapshots/step_000006", 0),
    "an old state goes": (r"os\.remove /snapshots/step_\d+/state\.json", 0),
    "an old state has half gone": (r"os\.remove /snapshots/step_\d+/state\.safetensors", 0),
    "the first previews are drawn": (r"busy previews", 2),
    "the last previews are drawn": (r"busy previews", 9),
    "the first preview's file": (r"os\.rename .*/previews/step_000003_0_prior\.png", 0),
    "between two previews": (r"os\.rename .*/previews/step_000003_1_prior\.png", 0),
    "the last preview's file": (r"os\.rename .*/previews/step_000006_1_tuned\.png", 0),
    "the LoRA's export": (r"os\.rename /DRAFT /toy_subject\.safetensors", 0),
    "the embedding's export": (r"os\.rename /DRAFT /toy_subject_embedding\.safetensors", 0),
    "the attention maps": (r"os\.rename .*/attention\.safetensors", 0),
    "the report's pictures": (r"os\.rename .*/indicator\.png", 0),
    "the report's last picture": (r"os\.rename .*/attention\.png", 0),
    "the report's numbers": (r"os\.rename .*/report\.json", 0),
    "the report": (r"os\.rename .*/report\.md", 0),
}


class Trainer:
    """The process that forks a child for every order."""

    def __init__(self) -> None:
        self._process = Forked(killed_run.main)

    def train(self, folder: Path, *, kill_after: float | None = None, **order: Any) -> dict[str, Any]:
        """`{ended, passed}` of a child; `kill_after`: seconds until it is killed from outside."""
        print(json.dumps({"folder": str(folder), **order}), file=self._process.stdin, flush=True)
        child = self._answer()["child"]
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # not waited for yet by its parent, so the number is still its own
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, "the trainer has died"
        return json.loads(line)

    def close(self) -> None:
        self._process.close()


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def unbroken(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[str]]:
    """What a run leaves that nobody kills, and the moments it passes."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    answer = trainer.train(folder)
    assert answer["ended"] == DONE
    return contents(folder), answer["passed"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, hidden ones too, and the empty folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def resumed(trainer: Trainer, folder: Path, unbroken: dict[str, bytes]) -> None:
    """The run goes on, ends, and has left what an unbroken one leaves."""
    assert trainer.train(folder)["ended"] == DONE
    left = contents(folder)
    assert left.keys() == unbroken.keys()
    assert [name for name in left if left[name] != unbroken[name]] == []


def test_a_run_killed_three_times_ends_in_the_same_bits(trainer: Trainer, unbroken: Any, tmp_path: Path) -> None:
    """The short form: in a snapshot, between the last snapshot and its previews, and in the report."""
    for name in ("a snapshot's state", "the last previews are drawn", "the report's last picture"):
        assert trainer.train(tmp_path / "run", kill_on=AIMED[name])["ended"] == KILLED, name
    resumed(trainer, tmp_path / "run", unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", AIMED)
def test_a_run_killed_at_an_aimed_moment_ends_in_the_same_bits(
    name: str, trainer: Trainer, unbroken: Any, tmp_path: Path
) -> None:
    assert trainer.train(tmp_path / "run", kill_on=AIMED[name])["ended"] == KILLED
    resumed(trainer, tmp_path / "run", unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_again_and_again_ends_in_the_same_bits(
    seed: int, trainer: Trainer, unbroken: Any, tmp_path: Path
) -> None:
    """Three kills each, the later ones in what resumes."""
    files, passed = unbroken
    draws = random.Random(seed)
    for _ in range(3):
        trainer.train(tmp_path / "run", kill_at=draws.randrange(len(passed) // 2))
    resumed(trainer, tmp_path / "run", files)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_line_cut_short_in_the_log_is_written_again(
    step: int, trainer: Trainer, unbroken: Any, tmp_path: Path
) -> None:
    assert trainer.train(tmp_path / "run", tear=step)["ended"] == KILLED
    resumed(trainer, tmp_path / "run", unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_from_outside_ends_in_the_same_bits(
    seed: int, trainer: Trainer, unbroken: Any, tmp_path: Path
) -> None:
    trainer.train(tmp_path / "run", kill_after=random.Random(seed).uniform(0.05, 1.5))
    resumed(trainer, tmp_path / "run", unbroken[0])

"""`bench quality`: its options, and the sibling of the embedded model that knows framed pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from apt_train.demo.recipe import MODEL
from apt_train.families.load import load_checkpoint
from benchmarks.quality import __main__ as command
from benchmarks.quality.store import RESULTS
from benchmarks.quality.subjects import KINDS
from benchmarks.quality.world_task import world_task
from benchmarks.world.framed import WEIGHTS, teach

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
Asked = tuple[Any, ...]
"""How `run_grid` was called: what makes the task, the grid, the folder, the processes."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What would be run, and reported on."""
    calls: list[Asked] = []
    monkeypatch.setattr(command, "run_grid", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(command, "write_report", lambda name, grid, folder: f"report of {name}")
    return calls


def test_the_verdict_is_run_and_reported_on(asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--workers", "3"]) == 0
    assert [call[1:] for call in asked] == [(command.GRIDS["verdict"], RESULTS / "verdict", 3)]
    assert "report of verdict" in capsys.readouterr().out


def test_report_runs_nothing_and_short_leaves_the_results_alone(asked: list[Asked]) -> None:
    assert command.main(["--report", "--grid", "parts"]) == 0 and asked == []
    assert command.main(["--short"]) == 0
    _, grid, folder, _ = asked[0]
    assert grid is command.SHORT and folder == Path("runs") / "quality-short"
    assert len(command.SHORT.units()) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "model.safetensors"], "needs --subjects, --clip and --out"),
        (["--grid", "framed"], "--model goes with --grid framed or ablation"),
        (["--model", "folder"], "--model goes with --grid framed or ablation"),
        (["--grid", "framed", "--model", "no such folder"], "no such folder does not exist"),
        (["--short", "--grid", "parts"], "--grid does not go with --short"),
        (["--device", "cpu"], "--device goes with --checkpoint"),
        (["--checkpoint", "model.safetensors", "--workers", "2"], "--workers goes with the drawn world"),
        (["--workers", "0"], "--workers is 0"),
        (["--checkpoint", "model.safetensors", "--seeds", "0"], "--seeds is 0"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(
    options: list[str], words: str, asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options) == 2 and asked == []
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_another_model_of_the_world_is_what_is_trained(asked: list[Asked], tmp_path: Path) -> None:
    assert command.main(["--grid", "framed", "--model", str(tmp_path)]) == 0
    make, grid, _, _ = asked[0]
    assert grid is command.GRIDS["framed"] and make().checkpoint == tmp_path
    assert command.main(["--grid", "parts"]) == 0 and asked[1][0]().checkpoint == MODEL


def test_a_smaller_share_is_fewer_prompts() -> None:
    of_each = {share: world_task(share).subject("toy_striped_orange_blue").prompts for share in (0.25, 0.5)}
    kinds = {share: Counter(prompt.kind for prompt in prompts) for share, prompts in of_each.items()}
    assert all(kinds[0.25][kind] < kinds[0.5][kind] for kind in KINDS)


def test_a_stopped_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "run_grid", Mock(side_effect=KeyboardInterrupt))
    assert command.main([]) == 130
    assert "Run the same command to continue" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_killed_run_leaves_no_worker_behind(tmp_path: Path) -> None:
    options = ["--grid", "parts", "--workers", "2", "--out", str(tmp_path)]
    asked_for = [sys.executable, "-m", "benchmarks.quality", *options]
    with subprocess.Popen(asked_for, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and "54 to run" in run.stdout.readline()
        process, until = psutil.Process(run.pid), time.monotonic() + 60
        while len(workers := process.children(recursive=True)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        run.terminate()
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "Run the same command to continue" in said and len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_an_unrun_grid_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--report", "--out", str(tmp_path)]) == 2
    assert "run it first" in capsys.readouterr().err


def test_the_sibling_differs_in_its_unet_alone(tmp_path: Path) -> None:
    losses = teach(tmp_path / "framed", steps=3, batch=4, pictures=6, lr=1e-3)
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)
    before, after = load_file(MODEL / WEIGHTS), load_file(tmp_path / "framed" / WEIGHTS)
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)
    assert {k: v.dtype for k, v in before.items()} == {k: v.dtype for k, v in after.items()}
    others = [path.relative_to(MODEL) for path in MODEL.rglob("*") if path.is_file() and path != MODEL / WEIGHTS]
    assert all((MODEL / path).read_bytes() == (tmp_path / "framed" / path).read_bytes() for path in others)
    assert load_checkpoint(tmp_path / "framed").digest != load_checkpoint(MODEL).digest

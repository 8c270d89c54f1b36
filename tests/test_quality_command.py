"""`bench quality`: its options, and the sibling of the embedded model that knows framed pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apt_train.checkpoint import load_checkpoint
from apt_train.demo import MODEL
from benchmarks.quality import __main__ as command
from benchmarks.quality.store import RESULTS
from benchmarks.world.framed import WEIGHTS, teach

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What would be run, and reported on."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(command, "run_grid", lambda make, grid, folder, workers: calls.append((grid, folder, workers)))
    monkeypatch.setattr(command, "write_report", lambda name, grid, folder: f"report of {name}")
    return calls


def test_the_verdict_is_run_and_reported_on(
    asked: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--workers", "3"]) == 0
    assert asked == [(command.GRIDS["verdict"], RESULTS / "verdict", 3)]
    assert "report of verdict" in capsys.readouterr().out


def test_report_runs_nothing_and_short_leaves_the_results_alone(asked: list[tuple[object, ...]]) -> None:
    assert command.main(["--report", "--grid", "parts"]) == 0 and asked == []
    assert command.main(["--short"]) == 0
    grid, folder, _ = asked[0]
    assert grid is command.SHORT and folder == Path("runs") / "quality-short"
    assert len(command.SHORT.units()) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "model.safetensors"], "needs --subjects, --clip and --out"),
        (["--grid", "framed"], "--model and --grid framed belong together"),
        (["--model", "folder"], "--model and --grid framed belong together"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(
    options: list[str], words: str, asked: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options) == 2 and asked == []
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


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

"""The benchmarks of time run, and their page shows what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apt_train.families.storage import STORAGES
from apt_train.training import compiled
from benchmarks import host_trainer, layout, recompute, setup, speed, storage

TABLES = {
    "setup": setup.table,
    "host-trainer": host_trainer.table,
    "host-trainer-fp32": host_trainer.table,
}  # of results that are no ratios of steps
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance" / "index.md"


def test_the_short_form_measures_every_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed", "--short", "--name", "now"])
    speed.main()
    kept = json.loads((tmp_path / "now.json").read_text())
    assert kept["rounds"] == 2 and kept["machine"]["threads"] == "1"
    ratios = kept["models"]["short"]
    assert set(ratios) == {*speed.RATIOS, speed.REST}
    assert all(low <= middle <= high for low, middle, high in ratios.values())
    assert capsys.readouterr().out == speed.table(kept["models"])


def test_layouts_are_compared_with_the_plain_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """Without the real compiler, which takes minutes."""
    monkeypatch.setattr(layout, "RESULTS", tmp_path)
    monkeypatch.setattr(compiled, "COMPILER", {"backend": "eager"})
    monkeypatch.setattr(sys, "argv", ["layout", "--short", "--name", "now"])
    layout.main()
    kept = json.loads((tmp_path / "now.json").read_text())["models"]["short"]
    assert set(kept) == {"channels last", "blocks compiled"} and all(low <= high for low, _, high in kept.values())
    assert capsys.readouterr().out.count("\n| ") == 2


def test_the_page_on_layouts_shows_what_was_measured() -> None:
    kept = json.loads((layout.RESULTS / "layout.json").read_text())
    assert layout.table(kept["models"]) in (PAGE.parent / "layout.md").read_text(encoding="utf-8")


def test_recomputing_is_compared_with_keeping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.setattr(recompute, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recompute", "--short", "--name", "now"])
    recompute.main()
    kept = json.loads((tmp_path / "now.json").read_text())["models"]["short"]
    assert set(kept) == {recompute.OUTERMOST, recompute.ALL} and kept[recompute.ALL][1] > 1
    assert capsys.readouterr().out == recompute.table({"short": kept})


def test_the_page_on_recomputing_shows_what_was_measured() -> None:
    kept = json.loads((recompute.RESULTS / "recompute.json").read_text())
    assert recompute.table(kept["models"]) in (PAGE.parent / "part-recompute.md").read_text(encoding="utf-8")


def test_storages_are_compared_with_the_full_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["storage", "--short", "--name", "now"])
    storage.main()
    kept = json.loads((tmp_path / "now.json").read_text())["models"]["short"]
    assert kept.keys() == STORAGES.keys()
    for one in kept.values():
        assert 0 < min(one[title] for title in storage.ERRORS) and one["step"] == sorted(one["step"])
    for title in storage.ERRORS:
        assert kept["int8"][title] < kept["fp8"][title] < kept["nf4"][title]
    assert capsys.readouterr().out == storage.table({"short": kept})


def test_the_page_on_storages_shows_what_was_measured() -> None:
    kept = json.loads((storage.RESULTS / "storage.json").read_text())
    assert storage.table(kept["models"]) in (PAGE.parent / "storages.md").read_text(encoding="utf-8")


def test_the_set_up_is_a_share_of_a_long_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
    no_report: None,
) -> None:
    monkeypatch.setattr(setup, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["setup", "--rounds", "1", "--steps", "3", "--name", "now"])
    setup.main()
    kept = json.loads((tmp_path / "now.json").read_text())
    assert min(kept[part] for part in ("libraries", "setup", "step")) > 0
    assert capsys.readouterr().out == setup.table(kept)
    assert "| set-up | 2.0 | 2.0% |" in setup.table({"run": 1000, "setup": 2.0, "libraries": 8.0, "step": 0.09})


def test_ratios_to_the_hosts_node_are_of_one_round() -> None:
    """That the benchmark runs is shown where a host is (`tests/host/test_trainer_bench.py`)."""
    seconds = {"TrainLoraNode": [0.1, 0.2, 0.4], "attention": [0.05, 0.14, 0.1], "attention+ff": [0.1, 0.2, 0.4]}
    line = host_trainer.table({"pixels": {"64": seconds}}).splitlines()[-1]
    assert line == "| 64 | 0.200 | 0.100 | 0.50 (0.25 - 0.70) | 0.200 | 1.00 (1.00 - 1.00) |"


@pytest.mark.parametrize("name", [path.stem for path in sorted(speed.RESULTS.glob("*.json"))])
def test_the_page_shows_what_was_measured(name: str) -> None:
    kept = json.loads((speed.RESULTS / f"{name}.json").read_text())
    shown = TABLES[name](kept) if name in TABLES else speed.table(kept["models"])
    assert shown in PAGE.read_text(encoding="utf-8")

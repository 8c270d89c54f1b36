"""The speed benchmark runs, and its page shows what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import speed

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


@pytest.mark.parametrize("name", [path.stem for path in sorted(speed.RESULTS.glob("*.json"))])
def test_the_page_shows_what_was_measured(name: str) -> None:
    kept = json.loads((speed.RESULTS / f"{name}.json").read_text())
    assert speed.table(kept["models"]) in PAGE.read_text(encoding="utf-8")

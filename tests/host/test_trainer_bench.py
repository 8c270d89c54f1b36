"""The benchmark beside the host's own trainer node runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import host_trainer


@pytest.mark.slow
def test_the_short_form_measures_both_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_trainer, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["host_trainer", "--short", "--name", "now"])
    host_trainer.main()
    kept = json.loads((tmp_path / "now.json").read_text())
    ways = (host_trainer.HOST, host_trainer.ATTENTION, host_trainer.FEED_FORWARD)
    assert {way: len(seconds) for way, seconds in kept["pixels"]["64"].items()} == dict.fromkeys(ways, 1)
    assert capsys.readouterr().out == host_trainer.table(kept)

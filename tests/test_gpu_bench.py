"""The GPU benchmark runs where there is none, on networks of a few weights, as a device's minutes are dear."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_train.errors import InputError
from apt_train.training import compiled
from benchmarks import gpu, layout, speed


def test_the_tiny_form_measures_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)  # the real one takes minutes here
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--name", "now"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    kept = json.loads((tmp_path / "now.json").read_text())
    assert [(row["way"], row["checkpointing"]) for row in kept["steps"]] == [
        *((way, on) for on in (False, True) for way in ("bare loop", *gpu.WAYS)),
        ("APT, low memory", True),
        ("APT, one part recomputed", True),
        ("APT, blocks aside", True),
        ("DreamBooth, channels last", True),
        ("DreamBooth, blocks compiled", True),
    ]
    assert all(row["seconds"] > 0 and row["utilisation"] > 0 for row in kept["steps"])
    assert kept["agreement"]["lora"] == kept["agreement"]["lora, resumed"] == 0  # both on the CPU
    assert capsys.readouterr().out == gpu.report(kept)


def test_random_weights_that_were_rounded_are_measured_on_in_every_way(one_thread: None) -> None:
    """On a card without bf16 the first way rounds them to fp16, and the last stores them in one byte."""
    parts = replace(speed.components("short"), rounded_to=torch.float16)
    on = gpu.On(parts, 64, torch.device("cpu"), torch.float32)
    with gpu._steps(on, gpu.LOW_MEMORY, True) as (step, run):
        step()
        assert run is not None and run.steps_done == 1


def test_operations_are_counted_with_the_attention() -> None:
    """A network four times as large in area takes more than four times as many: attention grows by the square."""
    assert gpu.operations("tiny", 128) > 4 * gpu.operations("tiny", 64) > 0


def test_a_row_that_does_not_fit_is_one_line() -> None:
    row = {"model": "sdxl", "side": 1024, "way": "APT", "checkpointing": False, "seconds": None, "bytes": None}
    assert "out of memory" in gpu._line({**row, "failed": "out of memory"})


def test_without_a_compiler_the_other_rows_are_kept(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled, "COMPILER", {"backend": no_compiler})
    on = gpu.On(speed.components("short"), 64, torch.device("cpu"), torch.float32)
    row = gpu._row(on, layout.CHANGES["blocks compiled"], True, 1.0)
    assert row["seconds"] is None and row["failed"] == "BackendCompilerFailed"


def test_what_fails_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes on a device are dear, and what was measured before it is taken away is kept."""
    overflow, rows = InputError("The model's own prediction is not a number in this precision"), 3

    def fail(*_: object, **__: object) -> Any:
        raise overflow

    @contextlib.contextmanager
    def steps(*_: object) -> Iterator[Any]:
        kept = json.loads((tmp_path / "now.json").read_text())["steps"] if (tmp_path / "now.json").exists() else []
        raise KeyboardInterrupt if len(kept) == rows else overflow
        yield

    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "ceilings", lambda *_: {"bf16": 1.0, "fp32": 1.0})
    monkeypatch.setattr(gpu, "agreement", fail)
    monkeypatch.setattr(gpu, "_steps", steps)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--name", "now"])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    kept = json.loads((tmp_path / "now.json").read_text())
    assert [row["why"] for row in kept["steps"]] == [str(overflow)] * rows
    assert str(overflow) in gpu.report(kept) and capsys.readouterr().err.count("InputError") == rows


def test_the_peak_is_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What encodes the pictures takes more than a step of the leanest rows."""
    order: list[str] = []

    @contextlib.contextmanager
    def steps(*_: object) -> Iterator[Any]:
        order.append("pictures")
        yield None, None

    def seconds(*_: object) -> float:
        order.append("steps")
        return 1.0

    monkeypatch.setattr(gpu, "_steps", steps)
    monkeypatch.setattr(gpu, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: order.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1)
    gpu._row(gpu.On(speed.components("short"), 64, torch.device("cuda"), torch.float32), {}, True, 1.0)
    assert order == ["pictures", "reset", "steps"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.main()


@pytest.mark.parametrize("fault", [FileNotFoundError(), subprocess.CalledProcessError(1, "nvidia-smi")])
def test_a_driver_that_nobody_can_tell_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    """As in a container without nvidia-smi."""

    def fail(*_: object, **_options: object) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert gpu.machine(torch.device("cuda"))["driver"] == "unknown"

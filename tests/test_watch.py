"""What the training node says of the time left, and when it ends early. Not here: the rest of it (`tests/host`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from apt_train.config import TrainConfig

from .node_modules import node_module
from .synthetic_run import plausible_log, write_run

HOST = (
    "comfy", "comfy.model_management", "comfy.utils", "comfy_api", "comfy_api.latest", "comfy_execution",
    "comfy_execution.utils", "folder_paths", "server",
)  # fmt: skip


@pytest.fixture(scope="module")
def watch() -> Iterator[Any]:
    """The module, beside stand-ins for the host's own, which are not used here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in HOST:
            patch.setitem(sys.modules, name, MagicMock())
        with node_module("watch") as module:
            yield module


def test_a_run_stopped_before_its_first_step_did_not_stop_after_step_0(watch: Any) -> None:
    assert watch.stopped_line(0, usable=True) == "stopped before the first step: queue again to train"
    assert watch.stopped_line(7, usable=False) == "stopped after step 7: queue again to go on"
    assert watch.stopped_line(7, usable=True).endswith("queue again to go on, or set steps to 7 to use it as it is")


def test_the_time_left_is_told_from_the_steps_so_far(
    watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their mean, from the end of the first one, which is slower than those that follow."""
    config = TrainConfig(class_word="toy", steps=12)
    run = watch.AptRun(write_run(tmp_path / "toy_0", plausible_log(2), config), "toy", "toy", "toy", "toy", 12)
    told = sys.modules["server"].PromptServer.instance.send_progress_text
    sys.modules["folder_paths"].get_user_directory.return_value = str(tmp_path)
    with watch.Watch(run, config, "1", "published") as watched:
        for step, now in ((1, 1000.0), (2, 1002.0), (4, 1012.0)):
            monkeypatch.setattr(watch.time, "monotonic", lambda now=now: now)
            watched(watch.StepEvent(step, 12, 0.5, {"denoising": 0.5}, 1.0, 1e-4, [1], [0.0]))
    lines = [call.args[0].split(" \u00b7 ") for call in told.call_args_list if call.args[0].startswith("step ")]
    assert [line[3:] for line in lines] == [[], ["20 s left"], ["32 s left"]]

"""What the training node says of itself when it ends early. Not here: what it shows while it trains (`tests/host`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from .node_modules import node_module

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

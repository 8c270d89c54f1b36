"""What outlives a run of `APT Train` that failed, was cancelled or was refused: nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from filelock import FileLock

from .graphs import training_graph, upload_pictures
from .server import Host, HostError
from .test_resume import cancel_after_a_step
from .trained import new_run, shown_text
from .workflows import Graph

NODE = "held_node.py"


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def held(host: Host, nonce: int) -> dict[str, Any]:
    g = Graph()
    node = g.node("AptHeld", nonce=nonce)
    return json.loads(shown_text(host.run(g.prompt), node))


def test_nothing_outlives_runs_that_failed_or_were_cancelled(host: Host, names: list[str]) -> None:
    """Counted by what can be reached, tensor by tensor: what a process holds of the machine also jumps by itself."""
    g, _ = training_graph(names, seed=50, steps=1)
    run = new_run(host, lambda: host.run(g.prompt))
    first = held(host, 0)
    assert first["tensors"] > 100 << 20, "the host keeps the checkpoint, else this sees nothing"
    cancel_after_a_step(host, training_graph(names, seed=51, steps=200)[0])
    cancelled = held(host, 1)
    with FileLock(run / ".lock"), pytest.raises(HostError, match="by another process"):
        host.run(training_graph(names, seed=50, steps=2)[0].prompt)  # once the model's copy is built
    failed = held(host, 2)
    host.run(training_graph(names, seed=52, steps=1)[0].prompt)
    assert held(host, 3) == first
    for after in (cancelled, failed):
        assert after["tensors"] <= first["tensors"] and after["modules"] == first["modules"]
        assert not after["kinds"].keys() - first["kinds"].keys()

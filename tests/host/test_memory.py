"""What `APT Train` leaves of the host's memory; in a host of its own, as other tests leave theirs."""

from __future__ import annotations

import pytest

from .graphs import training_graph, upload_pictures
from .server import Host
from .test_resume import cancel_after_a_step
from .trained import new_run


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def test_ten_runs_in_a_row_leave_the_memory_as_it_was(host: Host, names: list[str]) -> None:
    """Within one snapshot, made large enough here to stand out of the allocator's noise; one of them is cancelled.

    Six runs go before them: in one of its first the process comes to its working size, at a jump.
    """
    for seed in range(6):
        host.run(training_graph(names, seed=290 + seed, steps=1, rank=128, method="DreamBooth")[0].prompt)
    held, runs = [], []
    for seed in range(10):
        g, _ = training_graph(names, seed=300 + seed, steps=1 if seed != 5 else 200, rank=128, method="DreamBooth")
        if seed != 5:
            runs.append(new_run(host, lambda g=g: host.run(g.prompt)))
        else:
            cancel_after_a_step(host, g)
        held.append(host.memory())
    snapshot = sum(path.stat().st_size for path in (runs[-1] / "snapshots" / "step_000001").iterdir())
    assert held[-1] - held[1] < snapshot

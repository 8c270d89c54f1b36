"""What does recomputing activations cost in time, in part of the network or in all of it? One step of each in turn.

    python dev.py bench recompute [--rounds 12] [--model embedded|sd15] [--name NAME] [--short]

Measured is a whole APT step, in this process's CPU seconds on one thread. In: time. Not in: what it saves (memory.py).
"""

from __future__ import annotations

import contextlib
from functools import partial

from apt_train.training.update import optimizer_step
from benchmarks import speed

RESULTS = speed.RESULTS.parent / "recompute"
NONE, OUTERMOST, ALL = "nothing", "the outermost part", "all parts"


def main() -> None:
    speed.compare(__doc__ or "", RESULTS, measured, table)


def measured(name: speed.ModelName, rounds: int) -> dict[str, list[float]]:
    """Quartiles of the ratio to a step that recomputes nothing."""
    with contextlib.ExitStack() as stack:
        steps: dict[str, speed.Step] = {}
        for title in (NONE, OUTERMOST, ALL):
            run = stack.enter_context(speed.prepared(name, "apt", 1))
            network, unet = run.components.network, run.components.unet
            parts = {NONE: 0, OUTERMOST: 1, ALL: network.checkpoint_parts(unet)}[title]
            network.checkpoint(unet, parts)
            run.training_step.save_memory = parts > 0
            steps[title] = partial(optimizer_step, run)
        return speed.ratios(steps, NONE, rounds)


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A row per share of the network, a column per model: the median, and the quartiles in brackets."""
    return speed.ratio_table(found, [OUTERMOST, ALL])


if __name__ == "__main__":
    main()

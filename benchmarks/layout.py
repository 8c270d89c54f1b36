"""Does another memory layout, or compiled blocks, make the network faster? One step of each in turn.

    python dev.py bench layout [--rounds 12] [--model embedded|sd15] [--name NAME] [--short]

Measured is the network's part of an APT step (`speed.network_alone`), in this process's CPU seconds on one thread.
Compiling takes minutes and is not counted. In: the time of the network. Not in: whole steps (speed.py), a GPU (gpu.py).
"""

from __future__ import annotations

import contextlib

from benchmarks import speed

RESULTS = speed.RESULTS.parent / "layout"
CHANGES: dict[str, dict[str, bool]] = {
    "plain": {},
    "channels last": {"channels_last": True},
    "blocks compiled": {"compile_blocks": True},
}


def main() -> None:
    speed.compare(__doc__ or "", RESULTS, measured, table)


def measured(name: speed.ModelName, rounds: int) -> dict[str, list[float]]:
    """Quartiles of each change's ratio to the plain network."""
    with contextlib.ExitStack() as stack:
        steps: dict[str, speed.Step] = {}
        for title, change in CHANGES.items():
            steps[title] = speed.network_alone(stack.enter_context(speed.prepared(name, "apt", 1, **change)))
        return speed.ratios(steps, "plain", rounds)


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A row per change, a column per model: the median, and the quartiles in brackets."""
    return speed.ratio_table(found, [title for title in CHANGES if title != "plain"])


if __name__ == "__main__":
    main()

"""Does another memory layout, or compiled blocks, make the network faster? One step of each in turn.

    python dev.py bench layout [--rounds 12] [--model embedded|sd15] [--name NAME] [--short]

Measured is the network's part of an APT step (`speed.network_alone`), in this process's CPU seconds on one thread.
Compiling takes minutes and is not counted. In: the time of the network. Not in: whole steps (speed.py), a GPU (gpu.py).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import speed

RESULTS = speed.RESULTS.parent / "layout"
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""diffusers' classes that are compiled one by one: all blocks of a width share their code."""


def plain(network: nn.Module) -> None:
    """As a run trains it."""


def channels_last(network: nn.Module) -> None:
    to: Any = network.to  # torch's types lack this form
    to(memory_format=torch.channels_last)


def compiled(network: nn.Module) -> None:
    for module in network.modules():
        if type(module).__name__ in BLOCKS:
            module.compile(dynamic=False)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "plain": plain,
    "channels last": channels_last,
    "blocks compiled": compiled,
}


def main() -> None:
    options = speed.asked(__doc__ or "", RESULTS, 12)
    torch.set_num_threads(1)
    found = {name: measured(name, options.rounds) for name in options.model}
    print(table(found), end="")
    speed.keep(RESULTS, options.name, {"machine": speed.machine(), "rounds": options.rounds, "models": found})


def measured(name: speed.ModelName, rounds: int) -> dict[str, list[float]]:
    """Lower quartile, median and upper quartile of each change's ratio to the plain network, after a warm-up."""
    with contextlib.ExitStack() as stack:
        steps: dict[str, speed.Step] = {}
        for title, change in CHANGES.items():
            run = stack.enter_context(speed.prepared(name, "apt", 1))
            change(run.components.unet)
            steps[title] = speed.network_alone(run)
        seconds = [speed.one_round(steps, 1) for _ in range(rounds + 1)][1:]
    ratios = {title: [one[title] / one["plain"] for one in seconds] for title in CHANGES if title != "plain"}
    return {title: [round(value, 4) for value in statistics.quantiles(all_, n=4)] for title, all_ in ratios.items()}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A row per change, a column per model: the median, and the quartiles in brackets."""
    return speed.ratio_table(found, [title for title in CHANGES if title != "plain"])


if __name__ == "__main__":
    main()

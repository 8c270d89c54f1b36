"""What comes before the first step, as a share of a 1,000-step run's CPU time.

    python dev.py bench setup [--name NAME]     takes half a minute

It trains the embedded model for a few steps with the defaults, several times, on one thread. Set-up is everything from
reading the checkpoint to the first step, without that step. Loading Python and the libraries is counted separately,
because ComfyUI has already done most of it. In: the time before the steps. Not in: the cost of a step (speed.py).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from apt_train.config import TrainConfig
from apt_train.data.dataset import load_images
from apt_train.demo.recipe import DEMO, MODEL
from apt_train.events import Event, StepEvent
from apt_train.families.load import load_checkpoint
from apt_train.training.train import train
from benchmarks.speed import RESULTS, keep, machine

RUN = 1000  # steps of the run that the set-up is compared with


def main() -> None:
    libraries = time.process_time()
    options = _options()
    torch.set_num_threads(1)
    values = {"machine": machine(), "run": RUN, **measured(libraries, options.rounds, options.steps)}
    print(table(values), end="")
    keep(RESULTS, options.name, values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of each run, to know what a step costs")
    parser.add_argument("--name", help="also write benchmarks/results/speed/NAME.json")
    return parser.parse_args()


def measured(libraries: float, rounds: int, steps: int) -> dict[str, float]:
    """CPU seconds: `libraries` as given, and the set-up's and a step's medians over rounds."""
    pairs = [_one(steps) for _ in range(rounds)]
    setup, step = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"libraries": round(libraries, 3), "setup": round(setup, 3), "step": round(step, 4)}


def _one(steps: int) -> tuple[float, float]:
    """One run's set-up and its median step after the first, in CPU seconds."""
    ended: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepEvent):
            ended.append(time.process_time())

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(class_word="toy", steps=steps)
        images = load_images(DEMO / "subject")
        train(load_checkpoint(MODEL), images, config, device="cpu", output_dir=Path(folder) / "run", on_event=hear)
    step = statistics.median(later - earlier for earlier, later in zip(ended, ended[1:], strict=False))
    return max(0.0, ended[0] - began - step), step


def table(values: dict[str, Any]) -> str:
    """CPU seconds, and their shares of the whole run."""
    steps = values["run"] * values["step"]
    parts = {"set-up": values["setup"], "Python and the libraries": values["libraries"]}
    whole = steps + sum(parts.values())
    rows = [f"| {name} | {seconds:.1f} | {seconds / whole:.1%} |\n" for name, seconds in parts.items()]
    last = f"| {values['run']:,} steps | {steps:.1f} | {steps / whole:.1%} |\n"
    return "| | CPU seconds | of the run |\n|---|---|---|\n" + "".join(rows) + last


if __name__ == "__main__":
    main()

"""What a training step costs by method, as ratios to plain DreamBooth measured side by side.

    python dev.py bench cost [--rounds 20] [--batch-size 2] [--checkpointing]

Every round takes one step of each method in turn on the embedded model, so that whatever else the machine does falls
on all of them; the figure is the median over the rounds of time / DreamBooth's time in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import Any

import torch

from apt_train.config import AptConfig, OptimizerConfig, TrainConfig
from apt_train.data.dataset import load_images
from apt_train.demo.demo import DEMO, MODEL
from apt_train.families.sd import load_checkpoint
from apt_train.training.plan import plan_run
from apt_train.training.setup import Run, prepared_run
from apt_train.training.update import optimizer_step

# Augmentation off: its variants are encoded in the first steps only, and would pass for a cost of every step.
STEADY: dict[str, Any] = {"adaptive_augmentation": False, "balance_every": 0}
PARTS: dict[str, dict[str, Any]] = {
    "dreambooth": {"method": "dreambooth"},
    "dco": {"method": "dco"},
    "apt, loss weight alone": {"apt": AptConfig(**STEADY, stabilization=False, alignment=False)},
    "apt, + stabilization": {"apt": AptConfig(**STEADY, alignment=False)},
    "apt": {"apt": AptConfig(**STEADY)},
    "apt, lazy_prior 2": {"apt": AptConfig(**STEADY, lazy_prior=2)},
    "apt, lazy_prior 4": {"apt": AptConfig(**STEADY, lazy_prior=4)},
}
CYCLE = 4  # steps after which every lazy_prior above has run its prior pass equally often


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(_run(settings, options)) for name, settings in PARTS.items()}
        rounds = [_round(runs) for _ in range(options.rounds + 1)][1:]  # the first warms up
    print("| step of | time / DreamBooth's, median | quartiles |\n|---|---|---|")
    for name in PARTS:
        low, middle, high = statistics.quantiles([one[name] / one["dreambooth"] for one in rounds], n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} - {high:.2f} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one is steadier on a shared machine")
    return parser.parse_args()


def _run(settings: dict[str, Any], options: argparse.Namespace) -> contextlib.AbstractContextManager[Run]:
    config = TrainConfig(
        class_word="toy",
        gradient_checkpointing=options.checkpointing,
        optimizer=OptimizerConfig(batch_size=options.batch_size),
        **{"apt": AptConfig(**STEADY), **settings},
    )
    plan = plan_run(load_checkpoint(MODEL), load_images(DEMO / "subject"), config, device="cpu")
    return prepared_run(plan, lambda text: None)


def _round(runs: dict[str, Run]) -> dict[str, float]:
    """Seconds of `CYCLE` steps of each method, taken in turn."""
    seconds = dict.fromkeys(runs, 0.0)
    for _ in range(CYCLE):
        for name, run in runs.items():
            started = time.perf_counter()
            optimizer_step(run)
            seconds[name] += time.perf_counter() - started
    return seconds


if __name__ == "__main__":
    main()

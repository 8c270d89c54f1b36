"""The benchmark on the embedded model and the drawn world."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from apt_train.demo.recipe import MODEL, recipe

from .task import CONSTANTS, Task
from .world_judge import WorldJudge
from .world_subjects import world_subject

# DDIM steps. `python -m benchmarks.world.evaluate --steps 8 --samples 400` finds 0.9475 of the pictures right jointly.
# At 25 steps, the figure committed with the model, it is 0.9525.
SAMPLING_STEPS = 8


def world_task(share: float = 1.0, model: Path = MODEL) -> Task:
    """The demo's recipe (rank 16, learning rate 1e-3, batch 2). `share`: of the usual number of prompts.

    `model`: the embedded one, or another one of the drawn world.
    """
    demo = recipe()
    shared: dict[str, Any] = {
        name: value for name, value in demo["recipe"].items() if name in ("steps", "adapter", "optimizer")
    }
    return Task(
        name="drawn world",
        checkpoint=model,
        recipe={**shared, "identifier": "the_subject", "apt": CONSTANTS},
        subject=functools.partial(world_subject, share=share),
        judge=WorldJudge,
        sampling_steps=SAMPLING_STEPS,
        guidance=demo["sampling"]["guidance"],
    )

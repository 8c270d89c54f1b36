"""Optimizers by name. To add one, write its builder here and list it in `BUILDERS`.

A builder takes parameter groups, each with its own learning rate and weight decay, and the run's optimizer settings.
The optimizer must keep its entire state in `state_dict`, or a run could not be resumed exactly. torch is imported
inside functions, because the settings import this module only for the names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .config import OptimizerConfig


def adamw(groups: list[dict[str, Any]], settings: OptimizerConfig) -> Optimizer:
    from torch.optim import AdamW

    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    # Each parameter in one go: a third of the time on the CPU. Not every device has it in every version of torch.
    return AdamW(groups, betas=settings.betas, eps=settings.epsilon, fused=True if devices <= {"cpu", "cuda"} else None)


def radam(groups: list[dict[str, Any]], settings: OptimizerConfig) -> Optimizer:
    from torch.optim import RAdam

    return RAdam(groups, betas=settings.betas, eps=settings.epsilon, decoupled_weight_decay=True)


BUILDERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], Optimizer]] = {"adamw": adamw, "radam": radam}

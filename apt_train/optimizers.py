"""Optimizers by name. To add one, write its builder here and list it in `BUILDERS`.

A builder takes parameter groups, each with its own learning rate and weight decay, and the settings they share. The
optimizer must keep its entire state in `state_dict`, or a run could not be resumed exactly. torch is imported inside
functions, because the settings import this module only for the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Shared:
    """Settings shared by all parameter groups."""

    betas: tuple[float, float]
    epsilon: float


def adamw(groups: list[dict[str, Any]], shared: Shared) -> Optimizer:
    from torch.optim import AdamW

    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    # Each parameter in one go: a third of the time on the CPU. Not every device has it in every version of torch.
    return AdamW(groups, betas=shared.betas, eps=shared.epsilon, fused=True if devices <= {"cpu", "cuda"} else None)


def radam(groups: list[dict[str, Any]], shared: Shared) -> Optimizer:
    from torch.optim import RAdam

    return RAdam(groups, betas=shared.betas, eps=shared.epsilon, decoupled_weight_decay=True)


BUILDERS: dict[str, Callable[[list[dict[str, Any]], Shared], Optimizer]] = {"adamw": adamw, "radam": radam}

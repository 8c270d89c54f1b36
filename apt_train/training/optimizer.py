"""The optimizer over the trained parameters, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..adapter import Adapter
from ..config import TrainConfig
from ..optimizers import BUILDERS
from ..run.optimizer_state import kept_for
from ..text.identifier import Identifier


def build_optimizer(
    adapter: Adapter, identifier: Identifier | None, config: TrainConfig
) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """Build the optimizer over the adapter and, without weight decay, the identifier's rows, each at its own rate.

    Returns the trained parameters by name, and the optimizer that the settings choose. AssertionError: a run with it
    could not be resumed.
    """
    settings = config.optimizer
    lora = {f"adapter.{name}": one for name, one in adapter.parameters.items() if one.requires_grad}
    rows = {f"identifier.{i}": row for i, row in enumerate(identifier.rows)} if identifier is not None else {}
    groups = [_group(lora, settings.learning_rate, settings.weight_decay)]
    if rows:
        groups.append(_group(rows, settings.embedding_learning_rate, 0.0))
    trained, optimizer = {**lora, **rows}, BUILDERS[settings.optimizer](groups, settings)
    kept_for(optimizer, trained)  # to know before the first step that its state will come back
    return trained, optimizer


def _group(parameters: Mapping[str, nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
    """`base_lr` is what the schedule multiplies."""
    return {"params": list(parameters.values()), "lr": rate, "base_lr": rate, "weight_decay": decay}


def state_bytes(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> int:
    """The bytes that the optimizer will keep, without single numbers, which some keep in main memory."""
    kept = [tensor for moments in kept_for(optimizer, trained).values() for tensor in moments.values()]
    return sum(tensor.nbytes for tensor in kept if tensor.dim())


def lr_factor_of(config: TrainConfig) -> Callable[[int], float]:
    """The learning rate's factor by step (0-based): a diffusers schedule as a plain function.

    Without a scheduler object there is no scheduler state that a resumed run could disagree with.
    """
    from diffusers.optimization import get_scheduler

    settings = config.optimizer
    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        settings.lr_schedule, nothing, num_warmup_steps=settings.warmup_steps, num_training_steps=config.steps
    )
    return scheduler.lr_lambdas[0]  # pyright: ignore[reportAttributeAccessIssue]

"""A run in progress: its parts and its position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapter import Adapter
from ..sample.drift import DriftWatch
from .indicator import OverfitIndicator
from .inputs import Inputs
from .plan import Plan
from .step import TrainingStep
from .terms import Preservation, Term

if TYPE_CHECKING:
    from ..families.blocks_aside import BlocksAside
    from .compiled import CompiledBlocks


@dataclass
class Run:
    """A run in progress. `trainable`: every trained parameter by name, adapter and identifier."""

    plan: Plan
    inputs: Inputs
    adapter: Adapter
    blocks: BlocksAside
    indicator: OverfitIndicator
    training_step: TrainingStep
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    scaler: torch.amp.GradScaler
    compiled: CompiledBlocks
    recomputed: int = 0  # parts of the network whose activations are recomputed
    drift: DriftWatch | None = None  # None: drift is not measured
    steps_done: int = 0
    gamma: list[float] | None = None  # after the last step; None: read it from the indicator
    updating: bool = False  # during the update, when parameters and moments may disagree

    def __post_init__(self) -> None:
        plan = self.plan
        self.components, self.config, self.objective = plan.components, plan.config, plan.objective
        self.device, self.dtype = plan.device, plan.dtype
        self.bank = self.inputs.subject.bank  # of the subject's pictures
        self.preservation_term = Preservation(self.config.data.prior_preservation_weight)
        # Everything logged as a term, in the log's order.
        self.terms: list[Term | Preservation] = list(self.objective.terms)
        if self.inputs.preservation:
            self.terms.append(self.preservation_term)

"""A run in progress: its parts and its position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapter import Adapter
from ..config import TrainConfig
from ..families.components import Components
from ..sample.drift import DriftWatch
from .indicator import OverfitIndicator
from .inputs import Inputs
from .plan import Plan
from .step import TrainingStep
from .terms import Preservation, Term

if TYPE_CHECKING:
    from ..data.latent_bank import LatentBank
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
    recomputed: int  # parts of the network whose activations are recomputed
    drift: DriftWatch | None  # None: drift is not measured
    steps_done: int = 0
    gamma: list[float] | None = None  # after the last step; None: read it from the indicator
    updating: bool = False  # during the update, when parameters and moments may disagree

    @property
    def components(self) -> Components:
        return self.plan.components

    @property
    def config(self) -> TrainConfig:
        return self.plan.config

    @property
    def device(self) -> torch.device:
        return self.plan.device

    @property
    def bank(self) -> LatentBank:
        """Of the subject's pictures."""
        return self.inputs.subject.bank

    @property
    def preservation_term(self) -> Preservation:
        return Preservation(self.config.data.prior_preservation_weight)

    @property
    def terms(self) -> list[Term | Preservation]:
        """Everything logged as a term, in the log's order."""
        return [*self.plan.objective.terms, *([self.preservation_term] if self.inputs.preservation else [])]

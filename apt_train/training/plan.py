"""A run before its first step: its ingredients and everything derived from them, each computed once.

In: the objective, savings, sizes, identity, and the checks that need no training. Not in: what trains (`setup`).
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..events import PlanEvent
from ..families.precision import DTYPES, resolve_dtype
from ..run.content import Content
from ..sample.drift import unrelated_prompts
from .device import check_device, refuse_ranks, resolve_device
from .estimate import estimated
from .memory import Memory, Savings, blocks_too_many, fits, free_bytes, shares_main_memory
from .objective import Objective, check_layers, objective_of

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..data.dataset import ImageSet
    from ..families.components import Components


@dataclass(frozen=True)
class Plan:
    """Which model is trained on which pictures, with which settings, where and in which precision."""

    components: Components
    images: ImageSet
    prior_images: ImageSet | None
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def objective(self) -> Objective:
        return objective_of(self.config)

    @cached_property
    def savings(self) -> Savings:
        """What the run does to take less memory: with `memory` auto no more than the device requires."""
        asked, parts = self.config.gradient_checkpointing, self._checkpoint_parts
        if self.device.type == "cpu":
            return Savings(parts if asked else 0)
        free, rungs = free_bytes(self.device) if self.config.memory == "auto" else None, self._rungs()
        if free is None or self._estimated(rungs[0]) is None:
            default = self.components.network.checkpoints_on_gpu(self.components.unet)
            return Savings(parts if (default if asked is None else asked) else 0)
        fitting = (
            0 if self._fits(rungs[0], free) else bisect_left(rungs, True, 1, key=lambda one: self._fits(one, free))
        )
        if fitting < len(rungs):
            return rungs[fitting]
        leanest = self._estimated(rungs[-1])
        if leanest is None or rungs[-1].recomputed < parts or shares_main_memory(self.device):  # see `BlocksAside`
            return rungs[-1]
        return replace(rungs[-1], blocks_aside=blocks_too_many(leanest, free))

    def _rungs(self) -> list[Savings]:
        """What a run may do to take less memory, in the order of what it costs in time."""
        asked = self.config.gradient_checkpointing
        numbers = range(self._checkpoint_parts + 1) if asked is None else [self._checkpoint_parts * asked]
        rungs = [Savings(number) for number in numbers]
        lends = self.config.identifier_mode == "learned" and not shares_main_memory(self.device)
        return [*rungs, replace(rungs[-1], encoders_aside=True)] if lends else rungs

    @property
    def _checkpoint_parts(self) -> int:
        return self.components.network.checkpoint_parts(self.components.unet)

    def _fits(self, savings: Savings, free: int) -> bool:
        memory = self._estimated(savings)
        return memory is None or fits(memory, free)

    @cached_property
    def memory(self) -> Memory | None:
        """The run's estimated device memory, before the modules move there; None if unknown or small."""
        memory = self._estimated(replace(self.savings, blocks_aside=0))
        return memory and memory.with_aside(self.savings.blocks_aside)

    @cached_property
    def sets_aside(self) -> bool:
        """Whether the network leaves the device while the VAE works, because both together would be the run's peak.

        A host's VAE cannot be counted, so a network of a large kind always makes way for it.
        """
        if shares_main_memory(self.device) or self.memory is None:
            return False
        if self.components.vae is None:
            return self.components.network.checkpoints_on_gpu(self.components.unet)
        return self.memory.beside_vae > self.memory.in_step

    @cached_property
    def _estimated(self) -> Callable[[Savings], Memory | None]:
        """What a run with these savings takes; cached, as one estimate takes some seconds."""
        return functools.cache(functools.partial(estimated, self))

    @cached_property
    def event(self) -> PlanEvent:
        """The summary sent before the first step. Read it before the modules move. InputError: as in `check`."""
        self.check()
        memory, images = self.memory, self.images.images
        return PlanEvent(
            steps=self.config.steps,
            device=str(self.device),
            dtype=next(name for name, dtype in DTYPES.items() if dtype == self.dtype),
            pictures=len(images),
            captions=sum(bool(image.caption) for image in images),
            side=self.side,
            checkpointing=self.savings.recomputed > 0,
            parts=(self.savings.recomputed, self._checkpoint_parts),
            memory=memory and memory.peak(makes_way=self.sets_aside),
            free=free_bytes(self.device),
        )

    @property
    def side(self) -> int:
        """The side of a square training picture, in pixels."""
        return self.config.data.resolution or self.components.family.resolution

    @property
    def content(self) -> Content:
        model = self.components
        return Content(model.digest, model.schedule, self.images, self.prior_images, self.config)

    @cached_property
    def digest(self) -> str:
        """The run's identity: see `Content.hash`."""
        return self.content.hash(self.dtype)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The identity part by part, to report which part differs."""
        return self.content.parts()

    @cached_property
    def unrelated(self) -> list[str]:
        """Prompts without the subject that drift is measured on; empty: drift is not measured."""
        output = self.config.output
        watched = output.watch_drift and output.snapshot_every
        return unrelated_prompts(output.drift_prompts, self.config.class_word) if watched else []

    def check(self) -> None:
        """InputError for settings that cannot be trained, or that would fail hours into a run."""
        check_layers(self.objective, self.components.network, self.components.unet)
        check_device(self.device, self.dtype, self.config)
        if self.config.compile_blocks and not self.components.network.blocks(self.components.unet):
            raise InputError("compile_blocks is on, but this network has no blocks to compile: switch it off.")
        most, given = self.components.schedule.num_timesteps, self.config.output.preview_steps
        if self.config.output.preview_every and given > most:
            raise InputError(f"preview_steps is {given}, but this model's schedule has {most}: give {most} or fewer.")


def plan_run(
    components: Components,
    images: ImageSet,
    config: TrainConfig,
    *,
    prior_images: ImageSet | None = None,
    device: str | torch.device | None = None,
) -> Plan:
    """The plan of a run. `device` None: a GPU of NVIDIA, AMD or Apple if there is one, else the CPU.

    InputError: an argument is of another kind, the device cannot be used, or several processes were launched.
    """
    refuse_ranks()
    prior = images if prior_images is None else prior_images
    _check_kinds(components=components, images=images, config=config, prior_images=prior)
    place = resolve_device(device)
    return Plan(components, images, prior_images, config, place, resolve_dtype(config.precision, place))


def _check_kinds(**given: object) -> None:
    """InputError: a path, a list or a dictionary in the place of what is made of it.

    By the name of the type, as another copy of the package may have made it.
    """
    made = {
        "components": ("Components", "what load_checkpoint returns"),
        "images": ("ImageSet", "what load_images returns"),
        "prior_images": ("ImageSet", "what load_images returns"),
        "config": ("TrainConfig", "a TrainConfig"),
    }
    for name, value in given.items():
        kind, what = made[name]
        if kind not in [one.__name__ for one in type(value).__mro__]:
            raise InputError(f"{name} is of the type {type(value).__name__}: give {what}.")

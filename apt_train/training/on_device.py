"""The model where it is trained: on the device, in the run's type, the adapter on the network; and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch import nn

from ..adapter import Adapter, RankByTimestep, add_adapter, check_no_adapter
from ..families.storage import stored_in_fp8
from .plan import Plan


@contextlib.contextmanager
def encoders_on(plan: Plan) -> Generator[None]:
    """The text encoders in the run's type and storage; they come back to the CPU, however the block ends."""
    encoders = plan.components.text_encoders
    with contextlib.ExitStack() as stack:
        for encoder in encoders:
            encoder.keep_table(plan.dtype)
            stack.enter_context(_kept(encoder.model, plan))
        try:
            yield
        finally:
            for encoder in encoders:
                encoder.model.to("cpu")


def _kept(module: nn.Module, plan: Plan) -> contextlib.AbstractContextManager[None]:
    """Inside the block a module is in the run's type, its frozen weights as `base_storage` says."""
    if plan.config.base_storage == "fp8":
        return stored_in_fp8(module, plan.dtype)
    nn.Module.to(module, plan.dtype)  # diffusers' own `to` warns about a cast that is meant
    return contextlib.nullcontext()


@contextlib.contextmanager
def adapter_on(plan: Plan) -> Generator[Adapter]:
    """The network on the device, training, with a fresh adapter; then without it, in eval mode, on the CPU."""
    unet, network, settings = plan.components.unet, plan.components.network, plan.config.adapter
    check_no_adapter(unet)
    with _kept(unet, plan), _on_device(plan):
        adapter = add_adapter(
            unet,
            rank=settings.rank,
            alpha=settings.effective_alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            seed=plan.config.seed,
            ranks=_ranks_of(plan),
            kind=settings.kind,
        )
        try:
            unet.train()
            if plan.checkpoints:
                network.checkpoint(unet, True)
            yield adapter
        finally:
            adapter.remove()


@contextlib.contextmanager
def _on_device(plan: Plan) -> Generator[None]:
    """The network there; then in eval mode on the CPU."""
    unet = plan.components.unet
    try:
        nn.Module.to(unet, plan.device)
        yield
    finally:
        plan.components.network.checkpoint(unet, False)
        nn.Module.to(unet.eval(), "cpu")


def _ranks_of(plan: Plan) -> RankByTimestep | None:
    if not plan.objective.rank_by_timestep:
        return None
    settings, components = plan.config.adapter, plan.components
    return RankByTimestep(
        settings.rank, settings.resolved_min_rank, components.schedule.num_timesteps, components.levels
    )

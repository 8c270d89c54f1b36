"""Moves the model to the device in the run's precision, with the adapter attached; and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch import nn

from ..adapter import Adapter, adapter_of, check_no_adapter
from ..families.storage import stored_in_fp8
from .plan import Plan


@contextlib.contextmanager
def encoders_on(plan: Plan) -> Generator[None]:
    """The text encoders in the run's precision and storage; they return to the CPU when the block ends."""
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
    """Inside the block the module has the run's precision, its frozen weights stored as `base_storage` says."""
    if plan.config.base_storage == "fp8":
        return stored_in_fp8(module, plan.dtype)
    nn.Module.to(module, plan.dtype)  # diffusers' own `to` would warn about this intended cast
    return contextlib.nullcontext()


@contextlib.contextmanager
def adapter_on(plan: Plan) -> Generator[Adapter]:
    """The network on the device in training mode with a fresh adapter; afterwards bare, in eval mode, on the CPU."""
    unet, network = plan.components.unet, plan.components.network
    check_no_adapter(unet)
    with _kept(unet, plan), _on_device(plan):
        levels = plan.components.levels if plan.objective.rank_by_timestep else None
        adapter = adapter_of(unet, plan.config.adapter, levels, plan.config.seed, plan.components.family)
        try:
            unet.train()
            if plan.checkpoints:
                network.checkpoint(unet, True)
            yield adapter
        finally:
            adapter.remove()


@contextlib.contextmanager
def _on_device(plan: Plan) -> Generator[None]:
    """The network on the device inside the block; afterwards in eval mode on the CPU."""
    unet = plan.components.unet
    try:
        nn.Module.to(unet, plan.device)
        yield
    finally:
        plan.components.network.checkpoint(unet, False)
        nn.Module.to(unet.eval(), "cpu")

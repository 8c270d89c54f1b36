"""Moves the model to the device in the run's precision and attaches the adapter; and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch
from torch import nn

from ..adapter import Adapter, adapter_of, check_no_adapter
from ..families.blocks_aside import BlocksAside
from ..families.storage import stored
from ..families.swapped import in_channels_last
from .plan import Plan


@contextlib.contextmanager
def encoders_on(plan: Plan) -> Generator[None]:
    """The text encoders in the run's precision and storage; they return to the CPU when the block ends."""
    with contextlib.ExitStack() as stack:
        for encoder in plan.components.text_encoders:
            encoder.keep_table(plan.dtype)
            stack.enter_context(stored(encoder.model, plan.config.base_storage, plan.dtype))
            stack.callback(encoder.model.to, "cpu")
        yield


@contextlib.contextmanager
def network_on(plan: Plan) -> Generator[BlocksAside]:
    """The network on the device in training mode, but for the blocks that wait; afterwards in eval mode on the CPU."""
    unet, network = plan.components.unet, plan.components.network
    check_no_adapter(unet)
    layout = in_channels_last(unet) if plan.config.channels_last else contextlib.nullcontext()
    with stored(unet, plan.config.base_storage, plan.dtype), layout:
        unet.requires_grad_(False)
        blocks = BlocksAside(network.blocks(unet), plan.device)
        try:
            blocks.send(plan.savings.blocks_aside)
            with blocks.staying():
                nn.Module.to(unet, plan.device)
            network.checkpoint(unet.train(), plan.savings.recomputed)
            yield blocks
        finally:
            network.checkpoint(unet, 0)
            blocks.end()
            nn.Module.to(unet.eval(), "cpu")


@contextlib.contextmanager
def adapter_on(plan: Plan) -> Generator[Adapter]:
    """A fresh adapter on the network, which is bare again afterwards."""
    unet, levels = plan.components.unet, plan.components.levels if plan.objective.rank_by_timestep else None
    adapter = adapter_of(unet, plan.config.adapter, plan.components.family, levels, plan.config.seed)
    try:
        for parameter in adapter.parameters.values():
            if parameter.device.type != plan.device.type:  # that of a block which waits begins in main memory
                moved = nn.Parameter(parameter.detach().to(plan.device), parameter.requires_grad)
                torch.utils.swap_tensors(parameter, moved)
        yield adapter
    finally:
        adapter.remove()

"""The device memory a run will need, estimated by running one step on weightless modules before training starts.

In: the run's own step and the VAE, both counted. Not in: the counting (`live_bytes`), the decisions (`plan`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch

from ..adapter import adapter_of
from ..data.batch import Batch
from ..families.storage import stored
from ..text.captions import subject_captions
from ..text.conditioning import Conditioner
from .indicator import OverfitIndicator
from .live_bytes import META, LiveBytes, as_on_a_gpu, gradients_left_out, on_meta, weight_bytes
from .memory import Memory, Savings, shares_main_memory
from .optimizer import build_optimizer, state_bytes
from .step import TrainingStep

if TYPE_CHECKING:
    from .plan import Plan

SMALL = 100_000_000  # bytes of weights; a device that loads less can train it, and the estimate itself takes time


def estimated(plan: Plan, savings: Savings) -> Memory | None:
    """What the plan takes with these savings, but for blocks in main memory: see `Memory.with_aside`.

    None for a model too small to matter, or one that cannot run on the meta device.

    The modules are restored afterwards. A host that owns them must not use them meanwhile.
    """
    components = plan.components
    if sum(weight_bytes(module.parameters()) for module in components.modules) < SMALL:
        return None
    try:
        with _weightless(plan, savings) as step:
            return _counted(plan, savings, step)
    except (RuntimeError, NotImplementedError):  # an operation that needs its tensors' content
        return None


def _counted(plan: Plan, savings: Savings, step: TrainingStep) -> Memory:
    components = plan.components
    encoders = [encoder.model for encoder in components.text_encoders]
    identifier = step.conditioner.identifier
    trainable, optimizer = build_optimizer(step.adapter, identifier, plan.config)
    live = LiveBytes([components.unet, *encoders, *([identifier] if identifier is not None else [])])
    batch = _batch(plan)
    prior = plan.objective.needs_prior(0)
    with gradients_left_out(live, list(trainable.values())), _attention_of(plan.device), live:
        with step.adapter.at(batch.timesteps):
            step(batch, with_prior=prior).total.backward()
    network = weight_bytes(one for one in components.unet.parameters() if not one.requires_grad)
    blocks = tuple(
        weight_bytes(one for one in block.parameters() if not one.requires_grad)
        for block in components.network.blocks(components.unet)
    )
    resident = network + sum(weight_bytes(model.parameters()) for model in encoders) * _encoders_stay(plan, savings)
    vae = components.vae
    if shares_main_memory(plan.device) and vae is not None:
        resident += weight_bytes(vae.parameters())
    trained = weight_bytes(trainable.values())
    adapter = 2 * trained + state_bytes(optimizer, trainable)
    return Memory(resident, adapter, live.peak, _vae(plan), network, blocks)


def _attention_of(device: torch.device) -> contextlib.AbstractContextManager[None]:
    return as_on_a_gpu(only_meta=True, fused=device.type != "mps")


def _encoders_stay(plan: Plan, savings: Savings) -> bool:
    """Whether the text encoders stay on the device."""
    learns = plan.config.identifier_mode == "learned"
    return shares_main_memory(plan.device) or (learns and not savings.encoders_aside)


def _vae(plan: Plan) -> int | None:
    components, side = plan.components, plan.side
    encodes, decodes = plan.objective.adaptive_augmentation, plan.config.output.preview_every > 0
    if components.vae is None or not (encodes or decodes):
        return None
    pixels, latent = (1, 3, side, side), side // components.family.vae_factor
    channels = components.network.latent_channels(components.unet)
    with on_meta(components.vae), LiveBytes([components.vae]) as live, _attention_of(plan.device), torch.no_grad():
        if encodes:
            components.encode(torch.zeros(pixels, device=META))
        if decodes:
            components.decode(torch.zeros(1, channels, latent, latent, device=META))
    held = 0 if shares_main_memory(plan.device) else weight_bytes(components.vae.parameters())
    return held + live.peak


@contextlib.contextmanager
def _weightless(plan: Plan, savings: Savings) -> Generator[TrainingStep]:
    """The run's training step on modules that have shapes but no data."""
    components, config, network = plan.components, plan.config, plan.components.network
    unet, encoders = components.unet, components.text_encoders
    levels = components.levels if plan.objective.rank_by_timestep else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(components.lent())
        conditioner = Conditioner.of(config, encoders, META)
        for module in components.modules:
            stack.enter_context(on_meta(module, plan.dtype))
            stack.enter_context(stored(module, config.base_storage, plan.dtype))
        conditioner.is_aside = savings.encoders_aside  # without weights there is nothing to move
        with META:
            adapter = adapter_of(unet, config.adapter, components.family, levels)
        stack.callback(adapter.remove)
        network.checkpoint(unet, savings.recomputed)
        stack.callback(network.checkpoint, unet, 0)
        stack.callback(unet.train, unet.training)
        unet.train()
        with LiveBytes([]):  # only to remember results, which takes a fifth of the time
            conditioner.precompute([_longest_caption(plan)])
        indicator = OverfitIndicator(config.apt.bins, num_timesteps=components.schedule.num_timesteps, device=META)
        yield TrainingStep(
            components, adapter, conditioner, indicator, plan.objective,
            dtype=plan.dtype, save_memory=savings.recomputed > 0,
        )  # fmt: skip


def _batch(plan: Plan) -> Batch:
    components, config = plan.components, plan.config
    count, side = config.optimizer.batch_size, plan.side // components.family.vae_factor
    latents = torch.zeros(count, components.network.latent_channels(components.unet), side, side, device=META)
    timesteps = torch.zeros(count, dtype=torch.int64, device=META)
    captions = [_longest_caption(plan)] * count
    sizes = torch.zeros(count, 6, device=META)
    return Batch(latents, torch.zeros_like(latents), timesteps, captions, None, sizes, images=[0] * count)


def _longest_caption(plan: Plan) -> str:
    captions = subject_captions(plan.images, plan.config)
    return max(captions, key=len, default=plan.config.data.caption_template)  # a benchmark plans without pictures

"""The device memory a run will need, estimated by running one step on weightless modules before training starts.

In: the run's own step and the VAE, both counted. Not in: the counting (`live_bytes`), the decisions (`plan`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from ..adapter import adapter_of
from ..data.batch import Batch
from ..families.components import Components
from ..families.storage import stored
from ..text.conditioning import Conditioner
from .indicator import OverfitIndicator
from .live_bytes import META, LiveBytes, as_on_a_gpu, gradients_left_out, on_meta, weight_bytes
from .memory import Memory, Setting
from .optimizer import build_optimizer, state_bytes
from .step import TrainingStep

SMALL = 100_000_000  # bytes of weights; a device that loads less can train it, and the estimate itself takes time


def estimated(components: Components, setting: Setting) -> Memory | None:
    """The estimate; None for a model too small to matter, or one that cannot run on the meta device.

    The modules are restored afterwards. A host that owns them must not use them meanwhile.
    """
    modules = [components.unet, *(encoder.model for encoder in components.text_encoders)]
    if sum(weight_bytes(module.parameters()) for module in modules) < SMALL:
        return None
    try:
        with _weightless(components, setting) as step:
            return _counted(components, setting, step)
    except (RuntimeError, NotImplementedError):  # an operation that needs its tensors' content
        return None


def _counted(components: Components, setting: Setting, step: TrainingStep) -> Memory:
    encoders = [encoder.model for encoder in components.text_encoders]
    identifier = step.conditioner.identifier
    trainable, optimizer = build_optimizer(step.adapter, identifier, setting.config)
    live = LiveBytes([components.unet, *encoders, *([identifier] if identifier is not None else [])])
    batch = _batch(components, setting)
    prior = setting.objective.needs_prior(0)
    with gradients_left_out(live, list(trainable.values())), as_on_a_gpu(only_meta=True), live:
        with step.adapter.at(batch.timesteps):
            step(batch, with_prior=prior).total.backward()
    network = weight_bytes(components.unet.parameters()) - weight_bytes(step.adapter.parameters.values())
    blocks = tuple(
        weight_bytes(one for one in block.parameters() if not one.requires_grad)
        for block in components.network.blocks(components.unet)
    )
    resident = network + sum(weight_bytes(model.parameters()) for model in encoders) * _stays(setting)
    vae = components.vae
    if setting.device.type == "cpu" and vae is not None:
        resident += weight_bytes(vae.parameters())
    trained = weight_bytes(trainable.values())
    adapter = 2 * trained + state_bytes(optimizer, trainable)
    return Memory(resident, adapter, live.peak, _vae(components, setting), network, blocks)


def _stays(setting: Setting) -> bool:
    """Whether the text encoders stay on the device."""
    learns = setting.config.identifier_mode == "learned"
    return setting.device.type == "cpu" or (learns and not setting.savings.encoders_aside)


def _vae(components: Components, setting: Setting) -> int | None:
    encodes, decodes = setting.objective.adaptive_augmentation, setting.config.output.preview_every > 0
    if components.vae is None or not (encodes or decodes):
        return None
    pixels, latent = (1, 3, setting.side, setting.side), setting.side // components.family.vae_factor
    channels = components.network.latent_channels(components.unet)
    with on_meta(components.vae), LiveBytes([components.vae]) as live, as_on_a_gpu(only_meta=True), torch.no_grad():
        if encodes:
            components.encode(torch.zeros(pixels, device=META))
        if decodes:
            components.decode(torch.zeros(1, channels, latent, latent, device=META))
    held = 0 if setting.device.type == "cpu" else weight_bytes(components.vae.parameters())
    return held + live.peak


@contextlib.contextmanager
def _weightless(components: Components, setting: Setting) -> Generator[TrainingStep]:
    """The run's training step on modules that have shapes but no data."""
    config, network = setting.config, components.network
    unet, encoders = components.unet, components.text_encoders
    levels = components.levels if setting.objective.rank_by_timestep else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(components.lent())
        conditioner = Conditioner.of(config, encoders, META)
        for module in (unet, *(encoder.model for encoder in encoders)):
            stack.enter_context(on_meta(module, setting.dtype))
            stack.enter_context(stored(module, config.base_storage, setting.dtype))
        conditioner.is_aside = setting.savings.encoders_aside  # without weights there is nothing to move
        with META:
            adapter = adapter_of(unet, config.adapter, levels, family=components.family)
        stack.callback(adapter.remove)
        network.checkpoint(unet, setting.savings.recomputed)
        stack.callback(network.checkpoint, unet, 0)
        stack.callback(unet.train, unet.training)
        unet.train()
        with LiveBytes([]):  # only to remember results, which takes a fifth of the time
            conditioner.precompute([config.data.caption_template])
        indicator = OverfitIndicator(config.apt.bins, num_timesteps=components.schedule.num_timesteps, device=META)
        yield TrainingStep(
            components, adapter, conditioner, indicator, setting.objective,
            dtype=setting.dtype, save_memory=setting.savings.recomputed > 0,
        )  # fmt: skip


def _batch(components: Components, setting: Setting) -> Batch:
    count, side = setting.config.optimizer.batch_size, setting.side // components.family.vae_factor
    latents = torch.zeros(count, components.network.latent_channels(components.unet), side, side, device=META)
    timesteps = torch.zeros(count, dtype=torch.int64, device=META)
    captions = [setting.config.data.caption_template] * count
    return Batch(latents, torch.zeros_like(latents), timesteps, captions, None, torch.zeros(count, 6, device=META))

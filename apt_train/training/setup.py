"""Getting a run ready: everything that lasts longer than one step, built from components, pictures and settings."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass

import torch
from torch import nn

from ..adapter import Adapter, RankByTimestep, add_adapter, check_no_adapter
from ..config import Layers, TrainConfig
from ..data.dataset import ImageSet
from ..errors import InputError
from ..events import Busy
from ..families.components import Components
from ..families.network import Network
from ..sample.drift import DriftWatch, unrelated_prompts
from ..text.captions import mark_subject, trigger_text
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from .indicator import OverfitIndicator
from .objective import Objective, objective_of
from .optimizer import build_optimizer, lr_factor_of
from .step import TrainingStep
from .streams import Stream, build_streams
from .terms import Preservation, Term


@dataclass
class Run:
    """A run in progress. `trainable`: every trained parameter by name, adapter and identifier."""

    components: Components
    adapter: Adapter
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    objective: Objective
    subject: Stream
    preservation: Stream | None
    identifier: Identifier | None
    conditioner: Conditioner
    indicator: OverfitIndicator
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    scaler: torch.amp.GradScaler
    training_step: TrainingStep
    drift: DriftWatch | None  # None: nothing to measure
    steps_done: int = 0
    updating: bool = False  # inside the update, when parameters and moments may disagree

    @property
    def preservation_term(self) -> Preservation:
        return Preservation(self.config.data.prior_preservation_weight)

    @property
    def terms(self) -> list[Term | Preservation]:
        """All that is logged as a term, in the log's order."""
        return [*self.objective.terms, *([self.preservation_term] if self.preservation else [])]


@contextlib.contextmanager
def prepared_run(
    components: Components,
    images: ImageSet,
    prior_images: ImageSet | None,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    notify: Callable[[str], None],
    busy: Busy = lambda work, done, total: None,
) -> Iterator[Run]:
    """A run with its adapter on the UNet; when the block ends the adapter is off and the modules are on the CPU.

    `busy` is called before each piece of work that takes its time, also of the encoding in later steps; what it raises
    passes on.
    Raises InputError for anything in the pictures, captions or settings that cannot be trained on.
    """
    _check_layers(components, config)
    _check_previews(components, config)
    subject, preservation = build_streams(components, images, prior_images, config, device, notify, busy)
    for note in [*components.notes, *images.notes, *images.repeats(), *(prior_images.notes if prior_images else [])]:
        notify(note)
    if subject.bank.fixed:
        notify("The VAE gives no standard deviation: each picture's latent is fixed.")
    busy("model", 0, 0)
    components.use(dtype)
    with _encoders_on(components), _adapter_on(components, config, device, dtype) as adapter:
        identifier, conditioner = _conditioning(components, config, device, dtype)
        for warning in conditioner.warnings():
            notify(warning)
        drift = _drift_watch(components, adapter, config, device, dtype, subject, conditioner)
        busy("captions", 0, 0)
        _prepare_captions(conditioner, subject, preservation, drift, components, config)
        yield _assemble(
            components, adapter, config, device, dtype, subject, preservation, identifier, conditioner, drift
        )


def _check_layers(components: Components, config: TrainConfig) -> None:
    """A UNet may have no attention in the part that a term looks at."""
    for term in objective_of(config).terms:
        for setting, read, layers in _read_by(components.network, term):
            if not read(components.unet, layers):
                raise InputError(
                    f"{setting} is {layers}, but this model has no attention there: choose all, or switch {term.name} "
                    "off."
                )


def _read_by(network: Network, term: Term) -> Iterator[tuple[str, Callable[[nn.Module, Layers], Sized], Layers]]:
    """The setting of what a term reads, who finds the layers, and in which part of the network."""
    if term.features:
        yield "dist_layers", network.features, term.features
    if term.attention:
        yield "attn_layers", network.attention, term.attention


def _check_previews(components: Components, config: TrainConfig) -> None:
    """Before the first of them ends a run that has trained for hours."""
    most, given = components.schedule.num_timesteps, config.output.preview_steps
    if config.output.preview_every and given > most:
        raise InputError(f"preview_steps is {given}, but this model's schedule has {most}: give {most} or fewer.")


def _conditioning(
    components: Components, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Identifier | None, Conditioner]:
    encoders = components.text_encoders
    identifier = None
    if config.identifier_mode == "learned":  # before the cast, which would round the rows it starts from
        identifier = Identifier.from_init_word(encoders, config.resolved_init_word).to(device)
    for encoder in encoders:
        encoder.keep_table(dtype)
        encoder.model.requires_grad_(False).to(device, dtype)
    return identifier, Conditioner(encoders, identifier, class_word=config.class_word, name=config.name)


def preview_captions(config: TrainConfig) -> list[str]:
    """The preview prompts with `{subject}` wherever they name it; none given: the caption template."""
    prompts = config.output.preview_prompts or (config.data.caption_template,)
    return [mark_subject(prompt, name=config.name, class_word=config.class_word) for prompt in prompts]


def _drift_watch(
    components: Components,
    adapter: Adapter,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    subject: Stream,
    conditioner: Conditioner,
) -> DriftWatch | None:
    """None where nothing is to be measured. In batches of the training's own size, which have their place in memory."""
    output = config.output
    unrelated = unrelated_prompts(output.drift_prompts, config.class_word)
    if not (output.watch_drift and output.snapshot_every and unrelated):
        return None
    learned = config.identifier_mode == "learned"
    return DriftWatch(
        components,
        adapter,
        conditioner,
        list(itertools.islice(itertools.cycle(dict.fromkeys(subject.captions)), len(unrelated))),
        config.resolved_init_word if learned else trigger_text(config.name, config.class_word, "word"),
        unrelated,
        side=config.data.resolution or components.family.resolution,
        rows=config.optimizer.batch_size,
        device=device,
        dtype=dtype,
    )


def _prepare_captions(
    conditioner: Conditioner,
    subject: Stream,
    preservation: Stream | None,
    drift: DriftWatch | None,
    components: Components,
    config: TrainConfig,
) -> None:
    """Encode what never changes; in word mode that is everything, and the text encoders leave the device."""
    drawn = (*preview_captions(config), "") if config.output.preview_every else ()
    watched = drift.texts if drift else ()
    preserved = preservation.captions if preservation else ()
    conditioner.precompute([*subject.captions, *preserved, *drawn, *watched])
    if config.identifier_mode == "word":
        for encoder in components.text_encoders:
            encoder.model.to("cpu")


@contextlib.contextmanager
def _encoders_on(components: Components) -> Iterator[None]:
    """The text encoders come back to the CPU, however the block ends."""
    try:
        yield
    finally:
        for encoder in components.text_encoders:
            encoder.model.to("cpu")


@contextlib.contextmanager
def _adapter_on(
    components: Components, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[Adapter]:
    """The UNet on the device, training, with a fresh adapter; after the block without it, in eval mode, on the CPU."""
    unet, settings = components.unet, config.adapter
    check_no_adapter(unet)
    try:
        nn.Module.to(unet, device, dtype)  # diffusers' own `to` warns about a cast that is meant
        adapter = add_adapter(
            unet,
            rank=settings.rank,
            alpha=settings.effective_alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            seed=config.seed,
            ranks=_ranks_of(components, config),
            kind=settings.kind,
        )
        try:
            unet.train()
            if _checkpoints(components, config, device):
                components.network.checkpoint(unet, True)
            yield adapter
        finally:
            adapter.remove()
    finally:
        components.network.checkpoint(unet, False)
        nn.Module.to(unet.eval(), "cpu")


def _ranks_of(components: Components, config: TrainConfig) -> RankByTimestep | None:
    if not objective_of(config).rank_by_timestep:
        return None
    settings = config.adapter
    return RankByTimestep(settings.rank, settings.resolved_min_rank, components.schedule.num_timesteps)


def _checkpoints(components: Components, config: TrainConfig, device: torch.device) -> bool:
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return device.type != "cpu" and components.network.checkpoints_on_gpu(components.unet)


def _assemble(
    components: Components,
    adapter: Adapter,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    subject: Stream,
    preservation: Stream | None,
    identifier: Identifier | None,
    conditioner: Conditioner,
    drift: DriftWatch | None,
) -> Run:
    objective = objective_of(config)
    num_timesteps = components.schedule.num_timesteps
    indicator = OverfitIndicator(config.apt.bins, config.apt.ema, config.apt.temperature, num_timesteps)
    step = TrainingStep(
        components,
        adapter,
        conditioner,
        indicator,
        objective,
        dtype=dtype,
        save_memory=_checkpoints(components, config, device),
        chunks=conditioner.num_chunks([*subject.captions, *(preservation.captions if preservation else ())]),
    )
    trainable, optimizer = build_optimizer(adapter, identifier, config)
    return Run(
        components,
        adapter,
        config,
        device,
        dtype,
        objective,
        subject,
        preservation,
        identifier,
        conditioner,
        indicator,
        trainable,
        optimizer,
        lr_factor_of(config),
        torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        step,
        drift,
    )

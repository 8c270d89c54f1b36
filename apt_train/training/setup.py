"""Getting a run ready: everything that lasts longer than one step, built from its plan."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import nn

from ..adapter import Adapter, RankByTimestep, add_adapter, check_no_adapter
from ..config import TrainConfig
from ..events import Busy
from ..families.components import Components
from ..families.storage import stored_in_fp8
from ..sample.drift import DriftWatch
from ..text.captions import trigger_text
from ..text.conditioning import Conditioner, put_aside
from ..text.identifier import Identifier
from .indicator import OverfitIndicator
from .objective import Objective
from .optimizer import build_optimizer, lr_factor_of
from .plan import Plan, preview_captions
from .step import TrainingStep
from .streams import Stream, build_streams
from .terms import Preservation, Term


@dataclass
class Inputs:
    """What a step is drawn from and reads: pictures and captions, encoded."""

    subject: Stream
    preservation: Stream | None
    identifier: Identifier | None
    conditioner: Conditioner

    @property
    def captions(self) -> list[str]:
        return [*self.subject.captions, *(self.preservation.captions if self.preservation else ())]


@dataclass
class Run:
    """A run in progress. `trainable`: every trained parameter by name, adapter and identifier."""

    plan: Plan
    inputs: Inputs
    adapter: Adapter
    indicator: OverfitIndicator
    training_step: TrainingStep
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    scaler: torch.amp.GradScaler
    drift: DriftWatch | None  # None: nothing to measure
    steps_done: int = 0
    gamma: list[float] | None = None  # of the last step; None: it is in the indicator alone
    updating: bool = False  # inside the update, when parameters and moments may disagree

    @property
    def components(self) -> Components:
        return self.plan.components

    @property
    def config(self) -> TrainConfig:
        return self.plan.config

    @property
    def objective(self) -> Objective:
        return self.plan.objective

    @property
    def device(self) -> torch.device:
        return self.plan.device

    @property
    def dtype(self) -> torch.dtype:
        return self.plan.dtype

    @property
    def subject(self) -> Stream:
        return self.inputs.subject

    @property
    def preservation(self) -> Stream | None:
        return self.inputs.preservation

    @property
    def identifier(self) -> Identifier | None:
        return self.inputs.identifier

    @property
    def conditioner(self) -> Conditioner:
        return self.inputs.conditioner

    @property
    def preservation_term(self) -> Preservation:
        return Preservation(self.config.data.prior_preservation_weight)

    @property
    def terms(self) -> list[Term | Preservation]:
        """All that is logged as a term, in the log's order."""
        return [*self.objective.terms, *([self.preservation_term] if self.preservation else [])]


@contextlib.contextmanager
def prepared_run(
    plan: Plan, notify: Callable[[str], None], busy: Busy = lambda work, done, total: None
) -> Generator[Run]:
    """A run with its adapter on the network; when the block ends it is off and the modules are on the CPU.

    `busy` is called before each piece of work that takes its time, also of the encoding in later steps; what it raises
    passes on.
    Raises InputError for anything in the pictures, captions or settings that cannot be trained on.
    """
    plan.check()
    subject, preservation = build_streams(plan, notify, busy)
    for note in plan.notes:
        notify(note)
    if subject.bank.fixed:
        notify("The VAE gives no standard deviation: each picture's latent is fixed.")
    busy("model", 0, 0)
    plan.components.use(plan.dtype, in_fp8=plan.config.base_storage == "fp8")
    with _encoders_on(plan), _adapter_on(plan) as adapter:
        inputs = Inputs(subject, preservation, *_conditioning(plan))
        for warning in inputs.conditioner.warnings():
            notify(warning)
        drift = _drift_watch(plan, inputs, adapter)
        busy("captions", 0, 0)
        _prepare_captions(plan, inputs, drift)
        yield _assemble(plan, inputs, adapter, drift)


def _conditioning(plan: Plan) -> tuple[Identifier | None, Conditioner]:
    config, encoders = plan.config, plan.components.text_encoders
    identifier = None
    if config.identifier_mode == "learned":
        identifier = Identifier.from_init_word(encoders, config.resolved_init_word).to(plan.device)
    conditioner = Conditioner(encoders, identifier, class_word=config.class_word, name=config.name)
    if plan.encoders_aside:
        put_aside(conditioner, plan.device)
        return identifier, conditioner
    for encoder in encoders:
        encoder.model.to(plan.device)
    return identifier, conditioner


def _drift_watch(plan: Plan, inputs: Inputs, adapter: Adapter) -> DriftWatch | None:
    """None where nothing is to be measured. In batches of the training's own size, which have their place in memory."""
    config, unrelated = plan.config, plan.unrelated
    if not unrelated:
        return None
    learned = config.identifier_mode == "learned"
    return DriftWatch(
        plan.components,
        adapter,
        inputs.conditioner,
        list(itertools.islice(itertools.cycle(dict.fromkeys(inputs.subject.captions)), len(unrelated))),
        config.resolved_init_word if learned else trigger_text(config.name, config.class_word, "word"),
        unrelated,
        side=plan.side,
        rows=config.optimizer.batch_size,
        device=plan.device,
        dtype=plan.dtype,
    )


def _prepare_captions(plan: Plan, inputs: Inputs, drift: DriftWatch | None) -> None:
    """Encode what never changes; in word mode that is everything, and the text encoders leave the device."""
    drawn = (*preview_captions(plan.config), "") if plan.config.output.preview_every else ()
    inputs.conditioner.precompute([*inputs.captions, *drawn, *(drift.texts if drift else ())])
    if plan.config.identifier_mode == "word":
        for encoder in plan.components.text_encoders:
            encoder.model.to("cpu")


@contextlib.contextmanager
def _encoders_on(plan: Plan) -> Generator[None]:
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
def _adapter_on(plan: Plan) -> Generator[Adapter]:
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
    settings = plan.config.adapter
    return RankByTimestep(settings.rank, settings.resolved_min_rank, plan.components.schedule.num_timesteps)


def _assemble(plan: Plan, inputs: Inputs, adapter: Adapter, drift: DriftWatch | None) -> Run:
    apt, num_timesteps = plan.config.apt, plan.components.schedule.num_timesteps
    indicator = OverfitIndicator(apt.bins, apt.ema, apt.temperature, num_timesteps, plan.device)
    step = TrainingStep(
        plan.components,
        adapter,
        inputs.conditioner,
        indicator,
        plan.objective,
        dtype=plan.dtype,
        save_memory=plan.checkpoints,
        chunks=inputs.conditioner.num_chunks(inputs.captions),
    )
    trainable, optimizer = build_optimizer(adapter, inputs.identifier, plan.config)
    scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.dtype == torch.float16)
    lr_factor = lr_factor_of(plan.config)
    return Run(plan, inputs, adapter, indicator, step, trainable, optimizer, lr_factor, scaler, drift)

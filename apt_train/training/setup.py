"""Sets up a run: builds everything that outlives a single step from its plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import torch

from ..events import Busy
from .compiled import CompiledBlocks
from .indicator import OverfitIndicator
from .inputs import Inputs, conditioner_of, drift_watch, prepare_captions
from .on_device import adapter_on, encoders_on, network_on
from .optimizer import build_optimizer, lr_factor_of
from .plan import Plan
from .running import Run
from .step import TrainingStep
from .streams import build_streams

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..families.blocks_aside import BlocksAside
    from ..sample.drift import DriftWatch


@contextlib.contextmanager
def prepared_run(
    plan: Plan, notify: Callable[[str], None], busy: Busy = lambda work, done, total: None
) -> Generator[Run]:
    """A run with its adapter attached; afterwards the adapter is removed and the modules are on the CPU.

    `busy` is called before each lengthy piece of work, including encoding during later steps. Its exceptions pass
    through. Raises InputError for pictures, captions or settings that cannot be trained on.
    """
    plan.check()
    subject, preservation = build_streams(plan, notify, busy)
    if subject.bank.fixed:
        notify("The VAE gives no standard deviation: each picture's latent is fixed.")
    busy("model", 0, 0)
    plan.components.use(plan.dtype, plan.config.base_storage)
    with plan.components.lent(), encoders_on(plan), network_on(plan) as blocks, adapter_on(plan) as adapter:
        inputs = Inputs(subject, preservation, conditioner_of(plan))
        for warning in inputs.conditioner.warnings():
            notify(warning)
        drift = drift_watch(plan, inputs, adapter)
        busy("captions", 0, 0)
        prepare_captions(plan, inputs, drift)
        run = _assemble(plan, inputs, adapter, blocks, drift)
        with contextlib.closing(run.compiled):
            yield run


def _assemble(plan: Plan, inputs: Inputs, adapter: Adapter, blocks: BlocksAside, drift: DriftWatch | None) -> Run:
    apt, components = plan.config.apt, plan.components
    indicator = OverfitIndicator(
        apt.bins, apt.ema, apt.temperature, components.schedule.num_timesteps, plan.device, components.levels
    )
    step = TrainingStep(
        components, adapter, inputs.conditioner, indicator, plan.objective, dtype=plan.dtype,
        save_memory=plan.savings.recomputed > 0, chunks=inputs.conditioner.num_chunks(inputs.captions),
    )  # fmt: skip
    trainable, optimizer = build_optimizer(adapter, inputs.identifier, plan.config)
    to_compile = components.network.blocks(components.unet) if plan.config.compile_blocks else ()
    return Run(
        plan, inputs, adapter, blocks=blocks, indicator=indicator, training_step=step,
        trainable=trainable, optimizer=optimizer, lr_factor=lr_factor_of(plan.config),
        scaler=torch.amp.GradScaler(plan.device.type, enabled=plan.dtype == torch.float16),
        compiled=CompiledBlocks(to_compile, step.capture.hooked), recomputed=plan.savings.recomputed, drift=drift,
    )  # fmt: skip

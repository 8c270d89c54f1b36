"""`train()`: a run from its plan to its files.

It reads from top to bottom: the ingredients of a run (plan.py, setup.py), its folder (opening.py), step after step
(loop.py). However a run ends, finish.py writes its files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..events import Callback, StopTraining, TrainResult
from ..run.folder import RunFolder, check_record
from ..torch_defaults import torch_defaults
from .finish import finish, stopped_early, write_extras
from .listener import Listener
from .loop import run_steps
from .opening import begin, held
from .out_of_memory import memory_in_words
from .outcome import Outcome
from .plan import plan_run
from .setup import prepared_run
from .update import TrainingDiverged

if TYPE_CHECKING:
    import torch

    from ..config import TrainConfig
    from ..data.dataset import ImageSet
    from ..families.components import Components


@torch_defaults()
def train(
    components: Components,
    images: ImageSet,
    config: TrainConfig,
    *,
    prior_images: ImageSet | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    on_event: Callback | None = None,
    record: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Personalize a diffusion model to one subject and return its LoRA.

    Args:
        components: the model. Its modules are moved in place to `device` and the run's precision. Afterwards they are
            on the CPU, without the adapter.
        images: pictures of the subject.
        config: all settings.
        prior_images: pictures of the class for DreamBooth's prior preservation.
        output_dir: the run's folder; None: nothing is written.
        resume: continue the run in `output_dir` (on the CPU: bit for bit as if it had never stopped).
        device: None: a GPU of NVIDIA, AMD or Apple if there is one, else the CPU.
        on_event: receives a `PlanEvent` before the first step, and every `StepEvent`, `PreviewEvent`, `NoticeEvent` and
            `BusyEvent`. It may raise `StopTraining`, which ends the run normally. Any other exception is re-raised
            once the last completed step has been saved. If it stops a run during preparation, nothing is written and
            the result has no LoRA.
        record: extra entries for `config.json`, beside the settings.

    Raises:
        InputError: an input cannot be used; nothing has been written. Also: the disk is full, memory is too small, or
            the loss is not finite (`TrainingDiverged`); the last good snapshot is kept.
    """
    plan = plan_run(components, images, config, prior_images=prior_images, device=device)
    check_record(record or {})
    folder = RunFolder.open(output_dir, config.name, resume)
    resumed = folder if resume else None
    listener = Listener(on_event, resumed and resumed.path)
    if resumed is not None:
        resumed.check_same_run(plan.digest, config, plan.dtype, plan.parts)
    _ = plan.event  # computed now: its estimate needs the modules before they move

    with (
        contextlib.suppress(StopTraining),  # during preparation there is no step to stop after
        memory_in_words(),
        held(resumed),  # lock before loading, in case another process is training there
        prepared_run(plan, listener.notice, listener.busy) as run,
        held(None if resume else folder),  # lock late: it creates the folder, so all inputs must be valid first
    ):
        outcome = Outcome(run, folder)
        if folder is not None:
            begin(outcome, {**(record or {}), "parts": plan.parts}, listener)
        try:
            run_steps(outcome, listener)
        except StopTraining:
            outcome.stopped = True
        except TrainingDiverged:
            raise
        except BaseException:
            # Cancelled by the host, out of memory, a bug in a callback: save the work done so far.
            if not run.updating:
                run.indicator.discard()
                finish(outcome)
            raise
        result = finish(outcome)
        report = write_extras(outcome, listener) if run.steps_done else None
        return replace(result, report=report, notices=listener.notices.texts)
    return stopped_early(config, listener, resumed and resumed.path)

"""The end of a run: files, result and report."""

from __future__ import annotations

from pathlib import Path

import numpy

from ..config import TrainConfig
from ..events import BusyEvent, Callback, NoticeEvent, TrainResult
from ..names import ATTENTION
from ..paths import argument, command
from ..report import write_report
from ..run.attention_file import write_maps
from .attention_probe import attention_of
from .listener import Listener
from .outcome import Outcome
from .saving import current_embeddings, current_lora, save_final


def finish(outcome: Outcome) -> TrainResult:
    """Save the last completed step, export the LoRA and return the result. Before the first step nothing is written."""
    run, folder = outcome.run, outcome.folder
    lora, embeddings = current_lora(run), current_embeddings(run)
    save_final(outcome, lora, embeddings)
    return TrainResult(
        lora=lora,
        embeddings=embeddings,
        trigger=run.config.trigger,
        steps_done=run.steps_done,
        stopped=outcome.stopped,
        run_dir=folder.path if folder else None,
        losses=outcome.losses,
        gamma=numpy.array(outcome.gamma, dtype=numpy.float64).reshape(-1, run.config.apt.bins),
    )


def write_extras(outcome: Outcome, emit: Callback) -> Path | None:
    """Write attention maps and report once the LoRA is safe. A failure here is only reported, as the LoRA is complete.

    Returns the path of the report, or None if there is no folder for it or it failed.
    """
    if outcome.folder is None:
        return None
    emit(BusyEvent("report", outcome.run.steps_done))
    try:
        if (maps := attention_of(outcome.run)) is not None:
            write_maps(outcome.folder.path / ATTENTION, maps)
        return write_report(outcome.folder.path)
    except Exception as error:
        again = command("report", argument(outcome.folder.path))
        text = f"The LoRA is written, but the report failed ({str(error).removesuffix('.')}): try `{again}`."
        emit(NoticeEvent(text, outcome.run.steps_done))
    return None


def stopped_early(config: TrainConfig, listener: Listener, run_dir: Path | None) -> TrainResult:
    """The result of a run stopped during preparation. `run_dir`: of a run being resumed, which stays untouched."""
    return TrainResult(
        lora={},
        embeddings=None,
        trigger=config.trigger,
        steps_done=listener.step,
        stopped=True,
        run_dir=run_dir,
        notices=listener.notices.texts,
    )

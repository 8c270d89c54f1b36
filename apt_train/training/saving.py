"""Saving a run: LoRA, embedding and full state, as a step's snapshot and as the final files.

In: which tensors with which metadata. Not in: when (`loop`, `finish`), the file formats (`run`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from ..disk.files import flush
from ..families.file_words import config_of
from ..names import LOG, STATE_VALUES, step_folder
from ..run.export import lora_to_kohya, save_embedding, save_lora
from ..run.folder import RunFolder, check_folder
from ..run.metadata import embedding_metadata, lora_metadata
from ..run.snapshot import fault_in, write_snapshot
from ..run.state import take_state
from .outcome import Outcome
from .running import Run

Tensors = dict[str, Tensor]
Writers = dict[Path, Callable[[Path], None]]


def save_snapshot(outcome: Outcome) -> None:
    """Save LoRA, embedding and full state of the step that just ended; does nothing without a folder."""
    run, folder = outcome.run, outcome.folder
    if folder is None:
        return
    writers = _writers(run, folder, current_lora(run), current_embeddings(run))
    folder.complete()
    _write_snapshot(run, folder, writers)


def save_final(outcome: Outcome, lora: Tensors, embeddings: Tensors | None) -> None:
    """Save LoRA, embedding and a final snapshot; does nothing without a folder or before the first step."""
    run, folder = outcome.run, outcome.folder
    if folder is None or not run.steps_done:
        return
    writers = _writers(run, folder, lora, embeddings)
    folder.complete()
    place = step_folder(folder.snapshots, run.steps_done)
    if not (place / STATE_VALUES).exists() or fault_in(place, [path.name for path in writers]) is not None:
        _write_snapshot(run, folder, writers)
    for path, write in writers.items():
        write(path)


def _write_snapshot(run: Run, folder: RunFolder, writers: Writers) -> None:
    check_folder(folder.snapshots)
    with contextlib.suppress(OSError):  # the log must reach the disk before the state that relies on it
        flush(folder.path / LOG)
    write_snapshot(folder.snapshots, take_state(run), {path.name: write for path, write in writers.items()})


def _writers(run: Run, folder: RunFolder, lora: Tensors, embeddings: Tensors | None) -> Writers:
    """The functions that write LoRA and embedding, by final path."""
    gamma = [round(float(value), 4) for value in run.indicator.gamma]
    summary = {"gamma": gamma} if run.config.indicator_measured(gamma) else None
    about = lora_metadata(
        run.config, run.components, captions=run.inputs.subject.captions, steps=run.steps_done, summary=summary
    )
    writers: Writers = {folder.lora: partial(save_lora, lora=lora, metadata=about)}
    if embeddings is not None:
        about = embedding_metadata(run.config, run.components, steps=run.steps_done)
        writers[folder.embedding] = partial(save_embedding, embeddings=embeddings, metadata=about)
    return writers


def current_lora(run: Run) -> Tensors:
    """The current LoRA, in kohya names."""
    model = run.components
    return lora_to_kohya(run.adapter.state(), run.config.adapter.effective_alpha, model.family, config_of(model.unet))


def current_embeddings(run: Run) -> Tensors | None:
    """The current learned embedding; None: there is none."""
    return run.inputs.identifier.embeddings() if run.inputs.identifier is not None else None

"""Prepares a run's folder before the first step, whether the run is new or resumed.

In: the lock, the first files, the log cut to the last saved step, room on the disk. Not in: restoring the state
(`resuming`), the folder's contents (`run`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from typing import Any

from ..config import TrainConfig
from ..events import NoticeEvent
from ..run.config_file import read_config
from ..run.folder import RunFolder
from ..run.preview_files import drop_newer_previews
from ..sample.drift import unrelated_prompts
from .listener import Listener
from .outcome import Outcome
from .resuming import restore_newest
from .stopping import measured_in


def held(folder: RunFolder | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if folder is None else folder.held()


def begin(outcome: Outcome, record: Mapping[str, Any], listener: Listener) -> None:
    """Write the folder's first files, or restore the newest snapshot and cut the log back to it."""
    folder, run = outcome.folder, outcome.run
    assert folder is not None
    before = folder.before and read_config(folder.path)  # again, under the lock: it may have been resumed since
    rescaled = before is not None and _drift_prompts(before.settings) != _drift_prompts(run.config)
    if before is not None:
        restore_newest(run, folder, listener)
        drop_newer_previews(folder.previews, run.steps_done)
    else:
        RunFolder.open_new(folder.path, folder.name)  # check again: another process may have come first
    bins = run.config.apt.bins
    if rescaled:  # cut before config.json changes: after a crash here, only it shows the old prompts
        folder.cut_log(run.steps_done, bins=bins, without=("drift",))
    facts = {
        "num_timesteps": run.components.schedule.num_timesteps,
        "dtype": str(run.plan.dtype),
        "terms": {term.name: {"title": term.title, "colour": term.colour} for term in run.terms},
    }
    folder.start(run.plan.digest, run.config, {**(before.record if before else {}), **facts, **record})
    log = folder.cut_log(run.steps_done, bins=bins)
    for line in log.lines:
        if len(line["gamma"]) == bins:
            outcome.remember(line["loss"], line["gamma"])
    outcome.measured.extend(measured_in(log.lines))
    outcome.unmeasured = [line["step"] for line in log.lines if not line.get("drift")]
    listener.step = run.steps_done
    if run.steps_done:
        listener.keep_notices(folder)
    for note in filter(None, (log.notice(), log.gap(run.steps_done))):
        listener.notice(note)
    _check_disk(outcome, listener)
    if rescaled:
        listener(NoticeEvent("The drift prompts have changed: the drift measured so far is dropped."))


def _check_disk(outcome: Outcome, listener: Listener) -> None:
    """A notice if the disk has too little room for what is still to be written, now rather than hours later."""
    folder, run = outcome.folder, outcome.run
    assert folder is not None
    kept = sum(4 * weight.numel() for weight in run.trainable.values())  # bytes of a snapshot's LoRA and word
    to_do = run.config.steps - run.steps_done
    snapshots = -(-to_do // (run.config.output.snapshot_every or to_do or 1))
    needed = kept * (snapshots + 3 * min(snapshots, 3))  # a state also has two moments; the third is being written
    with contextlib.suppress(OSError):  # a file system that does not tell
        free = shutil.disk_usage(folder.path).free
        if needed > free:
            listener.notice(
                f"The disk has {free / 1e9:.1f} GB free, and this run may write {needed / 1e9:.1f} GB: free some "
                "space, or raise snapshot_every."
            )


def _drift_prompts(config: TrainConfig) -> list[str]:
    return unrelated_prompts(config.output.drift_prompts, config.class_word)

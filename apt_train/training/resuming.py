"""Resuming: finds the newest intact state and restores it."""

from __future__ import annotations

from ..errors import InputError
from ..names import snapshot_folders
from ..run.folder import RunFolder
from ..run.snapshot import drop_old_states, read_newest_state, set_aside_newer
from ..run.state import restore_state
from .listener import Listener
from .running import Run


def restore_newest(run: Run, folder: RunFolder, listener: Listener) -> None:
    """Restore the newest intact state. A run that never reached a snapshot starts again."""
    state, faults = read_newest_state(folder.snapshots, run)
    if state is None:
        if snapshot_folders(folder.snapshots):
            raise InputError(
                f"{folder.path} has snapshots, but no state that can be read ({', '.join(faults)}): restore a "
                "state.safetensors and state.json, or train again in another folder."
            )
        if folder.lora.exists():
            raise InputError(
                f"{folder.path} has a LoRA, but no snapshot to go on from: restore its {folder.snapshots.name}, or "
                "train again in another folder."
            )
        return
    if state.step > run.config.steps:
        raise InputError(
            f"{folder.path} is at step {state.step} already: give a total above that, not {run.config.steps}."
        )
    restore_state(run, state)
    kept = [place.name for place in set_aside_newer(folder.snapshots, state.step)]
    drop_old_states(folder.snapshots)
    if faults:
        listener.notice(
            f"The newest state cannot be used ({', '.join(faults)}), so the run goes on from step {state.step}. What "
            f"came after it is kept as {', '.join(kept)} in {folder.snapshots.name}."
        )

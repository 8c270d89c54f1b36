"""Finished and interrupted runs on disk, in `output/apt_train/<subject>_<hash12>`: finding them, and reading them.

A folder has the layout of the command line's --output. hash12 covers everything that decides the weights except the
number of steps, so that raising the steps continues a run.

In: these folders. Not in: training (`training`), the files for the host's loaders (`published`).
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from PIL import Image

from ..apt_train import names
from ..apt_train.config import TrainConfig
from ..apt_train.disk.files import patiently, remove, sweep, take_place
from ..apt_train.disk.json_file import is_object, read_small_json
from ..apt_train.errors import InputError
from ..apt_train.events import PreviewEvent
from ..apt_train.run.config_file import read_config
from ..apt_train.run.folder import RunFolder
from ..apt_train.run.log import Line, read_log
from ..apt_train.run.preview_files import find_previews, read_preview
from ..apt_train.run.snapshot import fault_in
from ..apt_train.training.stopping import ending, measured_in
from ..apt_train.verdict.run_files import RunRecord, read_run
from .host.folders import inside, runs_folder
from .run_list import holds_run
from .wires import AptRun

RESTARTED = "restarted"  # in config.json, beside the settings
_SET_ASIDE: list[Path] = []  # by this process, whose host may still hold what such a run has given
MOST_REPORT = 16 << 20  # bytes of its numbers


def find_folder(config: TrainConfig, digest: str) -> Path:
    """The folder of the run with this content hash.

    If that run went beyond the requested steps and kept no snapshot there, a separate folder beside it is used.
    Training again gives the same weights, and nothing that was trained is lost.
    """
    folder = inside(runs_folder(), f"{config.name}_{digest[:12]}")
    if steps_done(folder) > config.steps and not snapshot_of(folder, config.steps).is_dir():
        return folder.with_name(f"{folder.name}_to{config.steps}")
    return folder


def steps_done(folder: Path) -> int:
    """The newest step that the run has saved; 0: none, or no run. An empty folder is no snapshot."""
    if not holds_run(folder):
        return 0
    found = names.snapshot_folders(folder / names.SNAPSHOTS)
    return max((step for step, snapshot in found.items() if any(snapshot.glob("[!.]*"))), default=0)


def set_aside(folder: Path) -> None:
    """Make way for a new run: rename the present one to ..._previous, unless that name has one with more steps.

    InputError: another process is training there, or a file is in use.
    """
    if not folder.exists():
        return
    with RunFolder(folder, "").held():
        pass  # released before the folder moves, because Windows would refuse
    previous = folder.with_name(folder.name + "_previous")
    sweep(folder.parent)
    try:
        if steps_done(previous) > steps_done(folder):
            patiently(remove, folder)
        else:
            take_place(folder, previous)
    except OSError as error:
        what = f"{folder} cannot be set aside ({error.strerror})"
        raise InputError(f"{what}: close what uses it, or move it away.") from None
    _SET_ASIDE.append(folder)


def times_set_aside() -> int:
    """How many runs this process has set aside."""
    return len(_SET_ASIDE)


def ended_step(folder: Path, config: TrainConfig) -> int | None:
    """The step, at most `steps`, at which a stopping rule ended the run under these settings; None: none did.

    Only the log decides, so a run trained with another `stop` also ends where this rule says. If that snapshot is gone,
    the next existing one counts, because training would not continue.
    """
    if not holds_run(folder) or read_config(folder).settings.output.drift_prompts != config.output.drift_prompts:
        return None
    lines = read_log(folder / names.LOG, config.apt.bins).lines
    found = ending(config.output.stop, measured_in(lines))
    if found is None:
        return None
    return next((step for step in names.snapshot_steps(folder) if found.step <= step <= config.steps), None)


def was_restarted(folder: Path) -> bool:
    """Whether the run there was started by `restart`."""
    return holds_run(folder) and bool(read_config(folder).content.get(RESTARTED))


def is_restart_to_finish(folder: Path, config: TrainConfig) -> bool:
    """Whether a restart was cancelled there; then it is resumed or used as it is, as after any Cancel."""
    if not was_restarted(folder):
        return False
    done = steps_done(folder)
    if lacks_report(folder, done):
        return True
    planned = max(config.steps, read_config(folder).settings.steps)
    return ended_step(folder, config) is None and done < planned


def lacks_report(folder: Path, steps: int) -> bool:
    """Whether a run of so many steps took its last one, but was cancelled while its last samples or report were drawn.

    A run that is used as it is, with fewer steps than it was begun with, has no report and needs none.
    """
    told = _steps_reported(folder)
    if not holds_run(folder) or told >= steps:
        return False
    before = read_config(folder).settings
    if steps != before.steps and steps != ended_step(folder, before):
        return False
    return any(line["step"] > told for line in read_log(folder / names.LOG).lines)


def _steps_reported(folder: Path) -> int:
    """The number of steps that the run's report is about; 0: there is none, or it is damaged."""
    try:
        report = read_small_json(folder / names.REPORT_NUMBERS, MOST_REPORT)
    except (OSError, ValueError):
        return 0
    told = report.get("steps_done") if is_object(report) else None
    return told if isinstance(told, int) else 0


def record_of(run: AptRun) -> RunRecord:
    """The run, read back up to its own last step. InputError: its folder is gone, or unreadable."""
    if not run.folder.is_dir():
        raise InputError(
            f"The folder of {run.run_id} is gone: restore it to output/apt_train, or train it again by setting resume "
            "of APT Train to restart."
        )
    return read_run(run.folder, until=run.steps)


def snapshot_steps(run: AptRun) -> list[int]:
    """The steps of its snapshots, ascending, up to the run's own step."""
    return [step for step in names.snapshot_steps(run.folder) if step <= run.steps]


def is_damaged(run: AptRun) -> bool:
    """Whether the run's last snapshot exists but is damaged; then training continues and writes it again."""
    return run.steps in snapshot_steps(run) and fault_of(run, run.steps) is not None


def fault_of(run: AptRun, step: int) -> str | None:
    """What is wrong with a snapshot's LoRA or learned word, in a few words; None: nothing."""
    files = [names.lora_file(run.subject)]
    files += [names.embedding_file(run.subject)] if run.trigger.startswith(names.EMBEDDING) else []
    return fault_in(snapshot_of(run.folder, step), files)


def way_out(run: AptRun, step: int) -> str:
    """What to do about that damaged snapshot, in a few words."""
    others = sorted((at for at in snapshot_steps(run) if at != step), key=lambda at: (abs(at - step), -at))
    nearest = next((at for at in others if fault_of(run, at) is None), None)
    return "train it again with restart" if nearest is None else f"choose step {nearest}, the nearest that is intact"


def snapshot_of(folder: Path, step: int) -> Path:
    """The folder of a run's snapshot."""
    return names.step_folder(folder / names.SNAPSHOTS, step)


def gamma_and_losses(run: AptRun) -> tuple[list[list[float]], list[float]]:
    """The indicator after each step, one value per bin; and the total loss of each. NaN: the log has no number."""
    lines = _log(run)
    gamma = [[math.nan if value is None else value for value in line["gamma"]] for line in lines]
    return gamma, [math.nan if line["loss"] is None else line["loss"] for line in lines]


def newest_drift(run: AptRun) -> dict[str, float] | None:
    """The last measured drift from the prior; None: not measured."""
    measured = [line["drift"] for line in _log(run) if (line.get("drift") or {}).get("ratio") is not None]
    return measured[-1] if measured else None


def _log(run: AptRun) -> list[Line]:
    """The readable lines of the log, up to the run's own last step."""
    bins = read_config(run.folder).settings.apt.bins if holds_run(run.folder) else None
    return [line for line in read_log(run.folder / names.LOG, bins).lines if line["step"] <= run.steps]


def newest_samples(folder: Path, step: int) -> PreviewEvent | None:
    """The last samples drawn up to a step, one pair per prompt if readable; None: there are none."""
    found = find_previews(folder / names.PREVIEWS)
    files = {(drawn, prompt, kind): path for drawn, prompt, kind, path in found if drawn <= step}
    for at in sorted({drawn for drawn, _, _ in files}, reverse=True):
        prompts = sorted({prompt for drawn, prompt, _ in files if drawn == at})
        pairs = [pair for prompt in prompts if (pair := _pair(files, at, prompt)) is not None]
        if pairs:
            texts = [prompt for _, _, prompt in pairs]
            return PreviewEvent(at, texts, [prior for prior, _, _ in pairs], [tuned for _, tuned, _ in pairs])
    return None


def _pair(
    files: dict[tuple[int, int, str], Path], step: int, prompt: int
) -> tuple[Image.Image, Image.Image, str] | None:
    """Prior, tuned and their prompt; None: a file is missing or unreadable."""
    with contextlib.suppress(ValueError, KeyError):
        prior, _ = read_preview(files[step, prompt, "prior"])
        tuned, text = read_preview(files[step, prompt, "tuned"])
        return prior, tuned, text or ""
    return None

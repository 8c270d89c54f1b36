"""Finished and broken-off runs on disk: found again by what they were made of, and published for the host's loaders.

    output/apt_train/<subject>_<hash12>/           the run, in the layout of the command line's --output
    output/loras/<subject>_<hash8>.safetensors     the LoRA at the end of the run; at a picked snapshot ..._s<step>
    embeddings/<subject>_<hash8>.safetensors       its learned word, likewise

hash12 is of everything that decides the weights but the number of steps, so that a run goes on when steps are raised;
hash8 is of that and of the steps, so that two trainers in one graph never write the same file.

In: these three places. Not in: training (`training`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..apt_train import names
from ..apt_train.config import TrainConfig
from ..apt_train.disk.files import check_writable, sweep
from ..apt_train.disk.tensor_file import read_tensors
from ..apt_train.disk.tensor_writer import write_tensors
from ..apt_train.errors import InputError
from ..apt_train.events import PreviewEvent
from ..apt_train.run.config_file import read_config, read_settings
from ..apt_train.run.folder import RunFolder
from ..apt_train.run.log import Line, read_log
from ..apt_train.run.metadata import fit_metadata, renamed_metadata
from ..apt_train.run.preview_files import find_previews, read_preview
from ..apt_train.run.snapshot import check_kept
from ..apt_train.run.state import Damaged
from ..apt_train.text.captions import trigger_text
from ..apt_train.training.stopping import ending, measured_in
from .host.folders import embeddings_folder, inside, loras_folder, runs_folder
from .wires import AptRun

RESTARTED = "restarted"  # in config.json, beside the settings


@dataclass(frozen=True)
class Published:
    """A LoRA as the host's wires carry it, and what a prompt must say."""

    lora: dict[str, Tensor]
    trigger: str


def find_folder(config: TrainConfig, digest: str) -> Path:
    """The folder of the run with this content hash.

    Where it went on beyond the steps asked for and kept no snapshot there, a folder of its own beside it: training anew
    gives the same weights, and nothing that was trained is lost.
    """
    folder = inside(runs_folder(), f"{config.name}_{digest[:12]}")
    if steps_done(folder) > config.steps and not _snapshot(folder, config.steps).is_dir():
        return folder.with_name(f"{folder.name}_to{config.steps}")
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a run began there, though it may have been killed before it saved a step."""
    return (folder / names.CONFIG).is_file()


def steps_done(folder: Path) -> int:
    """The newest step that the run has saved; 0: none, or no run."""
    return max(names.snapshot_steps(folder), default=0) if holds_run(folder) else 0


def set_aside(folder: Path) -> None:
    """Make way for a new run: the one that stands there becomes ..._previous, unless that one has more steps.

    InputError: another process is training there, or a file is in use.
    """
    if not folder.exists():
        return
    with RunFolder(folder, "").held():
        pass  # let go again before the folder moves, which Windows would refuse
    previous = folder.with_name(folder.name + "_previous")
    goes = folder if steps_done(previous) > steps_done(folder) else previous
    try:
        if goes.exists():
            shutil.rmtree(goes)
        if goes != folder:
            folder.rename(previous)
    except OSError as error:
        what = f"{folder} cannot be set aside ({error.strerror})"
        raise InputError(f"{what}: close what uses it, or move it away.") from None


def ended_step(folder: Path, config: TrainConfig) -> int | None:
    """The step up to `steps` at which the run there has ended by itself under these settings; None: it has not.

    By its log alone, so a run trained under another `stop` has ended where this one ends. The snapshot must be there.
    """
    if not holds_run(folder) or read_settings(folder)[0].output.drift_prompts != config.output.drift_prompts:
        return None
    lines = read_log(folder / names.LOG, config.apt.bins).lines
    found = ending(config.output.stop, measured_in(lines))
    is_there = found is not None and found.step <= config.steps and _snapshot(folder, found.step).is_dir()
    return found.step if found is not None and is_there else None


def was_restarted(folder: Path) -> bool:
    """Whether the run there was begun by `restart`."""
    return holds_run(folder) and bool(read_config(folder).get(RESTARTED))


def is_restart_to_finish(folder: Path, config: TrainConfig) -> bool:
    """Whether a restart was cancelled there: it is gone on with, or taken as it is, as after every Cancel."""
    if not was_restarted(folder) or ended_step(folder, config) is not None:
        return False
    return steps_done(folder) < max(config.steps, read_config(folder)["config"]["steps"])


def check_places(config: TrainConfig) -> None:
    """InputError, before hours of training: a folder that the result could not be written to."""
    check_writable(runs_folder())
    check_writable(loras_folder())
    if config.identifier_mode == "learned":
        check_writable(embeddings_folder())
        if embeddings_folder().resolve() == loras_folder().resolve():  # the LoRA and its word have one name there
            raise InputError(f"{loras_folder()} holds both LoRAs and embeddings: give embeddings another folder.")


def open_run(folder: Path, config: TrainConfig, digest: str) -> AptRun:
    """The run at `config.steps`, as other nodes get it."""
    stem = f"{config.name}_{hashlib.sha256(f'{digest}/{config.steps}'.encode()).hexdigest()[:8]}"
    return AptRun(folder, stem, config.name, config.class_word, _trigger(config, stem), config.steps)


def snapshot_steps(run: AptRun) -> list[int]:
    """The steps that have a snapshot, rising, up to the run's own."""
    return [step for step in names.snapshot_steps(run.folder) if step <= run.steps]


def losses(run: AptRun) -> list[float]:
    """The total loss of every step."""
    return [math.nan if line["loss"] is None else line["loss"] for line in _log(run)]


class PublishedFiles:
    """What this process has published: the host's cache does not notice when such a file is deleted."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()

    def add(self, path: Path) -> None:
        self._paths.add(path)

    def missing(self) -> list[str]:
        """The files that are gone, by name."""
        return sorted(path.name for path in self._paths if not path.is_file())


PUBLISHED = PublishedFiles()


def publish(run: AptRun, step: int | None = None) -> Published:
    """Put a snapshot's LoRA and learned word where the host's loaders and prompts find them.

    A file that holds these very weights stays; one of an earlier training, which on a GPU differs in its last bits,
    does not. `step`: a snapshot's; None: the end of the run.
    InputError: no such snapshot, or a folder that cannot be written.
    """
    picked = run.steps if step is None else step
    if picked not in snapshot_steps(run):
        there = ", ".join(map(str, snapshot_steps(run))) or "none"
        raise InputError(f"{run.run_id} has no snapshot of step {picked}: choose one of these steps: {there}.")
    source = _snapshot(run.folder, picked)
    fault = _fault(run, picked)
    if fault:
        raise InputError(f"{run.run_id}'s snapshot of step {picked} is damaged ({fault}): {_way_out(run, picked)}.")
    stem = run.stem if picked == run.steps else f"{run.stem}_s{picked}"
    word = source / names.embedding_file(run.subject)
    stems = (word.stem, stem) if word.is_file() else None
    lora, metadata = _read(source / names.lora_file(run.subject))
    target = inside(loras_folder(), f"{stem}.safetensors")
    PUBLISHED.add(target)
    if not _holds(target, lora):
        samples = newest_samples(run.folder, picked)
        picture = samples.tuned[0] if samples else None
        _write(target, lora, renamed_metadata(metadata, embedding=stems, stem=stem, thumbnail=picture))
    if stems is not None:
        _publish_word(word, inside(embeddings_folder(), f"{stem}.safetensors"))
    return Published(lora, f"embedding:{stem}" if stems is not None else run.trigger)


def is_damaged(run: AptRun) -> bool:
    """Whether the run's end is there, but not as it was written: its training goes on, which writes it again."""
    return run.steps in snapshot_steps(run) and _fault(run, run.steps) is not None


def _fault(run: AptRun, step: int) -> str | None:
    """What is wrong with a snapshot's LoRA or learned word, in a few words; None: nothing."""
    files = [names.lora_file(run.subject)]
    files += [names.embedding_file(run.subject)] if run.trigger.startswith("embedding:") else []
    try:
        for file in files:
            check_kept(_snapshot(run.folder, step) / file)
    except Damaged as fault:
        return str(fault)
    return None


def _way_out(run: AptRun, step: int) -> str:
    others = sorted((at for at in snapshot_steps(run) if at != step), key=lambda at: (abs(at - step), -at))
    nearest = next((at for at in others if _fault(run, at) is None), None)
    return "train it anew with restart" if nearest is None else f"choose step {nearest}, the nearest that is intact"


def _publish_word(source: Path, target: Path) -> None:
    PUBLISHED.add(target)
    rows, metadata = _read(source)
    if not _holds(target, rows):
        _write(target, rows, renamed_metadata(metadata, embedding=(source.stem, target.stem), stem=target.stem))


def _holds(target: Path, tensors: dict[str, Tensor]) -> bool:
    try:
        there, _ = _read(target)
    except (OSError, InputError):
        return False
    return there.keys() == tensors.keys() and all(torch.equal(there[name], tensors[name]) for name in there)


def _trigger(config: TrainConfig, stem: str) -> str:
    if config.identifier_mode == "learned":
        return f"embedding:{stem}"
    return trigger_text(config.name, config.class_word, config.identifier_mode)


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{target.parent} cannot be made ({error.strerror}): make it, or correct its permissions."
        ) from None
    sweep(target.parent)
    write_tensors(target, tensors, fit_metadata(metadata, tensors))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies: tensors of a mapped file would hold it open for as long as the host keeps them."""
    return read_tensors(path)


def _snapshot(folder: Path, step: int) -> Path:
    return names.step_folder(folder / names.SNAPSHOTS, step)


def gamma(run: AptRun) -> list[list[float]]:
    """The indicator after every step, one value per bin."""
    return [[math.nan if value is None else value for value in line["gamma"]] for line in _log(run)]


def newest_drift(run: AptRun) -> dict[str, float] | None:
    """The drift from the prior as it was last measured; None: it was not."""
    measured = [line["drift"] for line in _log(run) if (line.get("drift") or {}).get("ratio") is not None]
    return measured[-1] if measured else None


def _log(run: AptRun) -> list[Line]:
    """What can be read of the log, up to the run's own last step."""
    bins = read_settings(run.folder)[0].apt.bins if holds_run(run.folder) else None
    return [line for line in read_log(run.folder / names.LOG, bins).lines if line["step"] <= run.steps]


def newest_samples(folder: Path, step: int) -> PreviewEvent | None:
    """The last samples drawn up to a step, a pair per prompt as far as they can be read; None: there are none."""
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
    """Prior, tuned and what both show; None: a file is missing or cannot be read."""
    with contextlib.suppress(OSError, ValueError, SyntaxError, KeyError):
        prior, _ = read_preview(files[step, prompt, "prior"])
        tuned, text = read_preview(files[step, prompt, "tuned"])
        return prior, tuned, text or ""
    return None

"""Files of a run for the host's loaders and prompts: its LoRA, its learned word and a picture, under readable names.

    output/loras/<subject>_<method>_<steps>.safetensors   the final LoRA; for a snapshot ..._s<step>
    output/loras/<subject>_<method>_<steps>.png           its newest sample, where model managers look for a picture
    embeddings/<subject>_<method>_<steps>.safetensors     its learned word

If such a file belongs to another run or to the user, eight digits of the run's digest are appended: nothing is
overwritten. A run that was set aside (..._previous) or copied always has its own such digits.

In: these files. Not in: the run's folder (`run_store`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..apt_train import names
from ..apt_train.config import TrainConfig
from ..apt_train.disk.files import atomic_write, check_writable, sweep
from ..apt_train.disk.tensor_file import open_tensor_file, read_tensors
from ..apt_train.disk.tensor_writer import write_tensors
from ..apt_train.errors import InputError
from ..apt_train.paths import are_same
from ..apt_train.run.metadata import OWNER, fit_metadata, renamed_metadata
from ..apt_train.run.notices import read_notices
from ..apt_train.run.preview_files import png_text
from .host.folders import embeddings_folder, inside, lora_folders, loras_folder, runs_folder, words_named
from .run_store import fault_of, newest_samples, snapshot_of, snapshot_steps, way_out
from .wires import AptRun


@dataclass(frozen=True)
class Published:
    """A LoRA as the host's wires carry it, and the words a prompt needs."""

    lora: dict[str, Tensor]
    trigger: str


_PUBLISHED: set[Path] = set()  # by this process, because the host's cache does not notice when a file is deleted


def missing_files() -> list[str]:
    """The names of the published files that are gone."""
    return sorted(path.name for path in _PUBLISHED if not path.is_file())


def check_places(config: TrainConfig) -> None:
    """InputError, before hours of training, if the result could not be written to its folders."""
    check_writable(runs_folder())
    check_writable(loras_folder())
    if config.identifier_mode == "learned":
        check_writable(embeddings_folder())
        if are_same(embeddings_folder(), loras_folder()):  # LoRA and word would share a name there
            raise InputError(f"{loras_folder()} holds both LoRAs and embeddings: give embeddings another folder.")


def open_run(folder: Path, config: TrainConfig, digest: str) -> AptRun:
    """The run at `config.steps`, as other nodes receive it. `digest`: of everything that defines it except its steps.

    A run that was set aside or copied has the digest of the one its node continues, but names of its own.
    """
    is_nodes_own = re.fullmatch(rf"{re.escape(config.name)}_[0-9a-f]+(_to{config.steps})?", folder.name) is not None
    what = f"{digest}/{config.steps}" if is_nodes_own else f"{digest}/{config.steps}/{folder.name}"
    owner = hashlib.sha256(what.encode()).hexdigest()[:8]
    learned = config.identifier_mode == "learned"
    readable = f"{config.name}_{config.method}_{config.steps}"
    stem = _free_stem(readable if is_nodes_own else f"{readable}_{owner}", owner, learned)
    trigger = f"{names.EMBEDDING}{stem}" if learned else config.trigger
    return AptRun(folder, stem, config.name, config.class_word, trigger, config.steps, owner)


@torch.inference_mode(False)  # the host runs nodes in inference mode, but outputs must be plain tensors
def publish(run: AptRun, step: int | None = None) -> Published:
    """Put a snapshot's LoRA and learned word where the host's loaders and prompts find them.

    A file with exactly these weights is kept. One from an earlier training, whose last bits differ on a GPU, is
    replaced. `step`: a snapshot's; None: the end of the run. InputError: no such snapshot, or a folder is not writable.
    """
    picked = checked_step(run, run.steps if step is None else step)
    source = snapshot_of(run.folder, picked)
    word = source / names.embedding_file(run.subject)
    readable = run.stem if picked == run.steps else f"{run.stem}_s{picked}"
    stem = _free_stem(readable, run.owner, word.is_file())  # checked again: hours may have passed since the run began
    stems = (word.stem, stem) if word.is_file() else None
    lora, metadata = read_tensors(source / names.lora_file(run.subject))
    target = inside(loras_folder(), f"{stem}.safetensors")
    _PUBLISHED.add(target)
    samples = newest_samples(run.folder, picked)
    picture = samples.tuned[0] if samples else None
    if not _holds(target, lora):
        notes = [notice.text for notice in read_notices(run.folder) if notice.step <= picked]
        _write(
            target,
            lora,
            renamed_metadata(metadata, embedding=stems, stem=stem, thumbnail=picture, owner=run.owner, notes=notes),
        )
    if picture is not None:
        _publish_picture(target.with_suffix(".png"), picture, run.owner)
    if stems is not None:
        _publish_word(word, inside(embeddings_folder(), f"{stem}.safetensors"), run.owner)
    return Published(lora, f"{names.EMBEDDING}{stem}" if stems is not None else run.trigger)


def checked_step(run: AptRun, step: int) -> int:
    """The step, if its snapshot is intact. InputError if not, naming what to choose instead."""
    if step not in snapshot_steps(run):
        there = ", ".join(map(str, snapshot_steps(run))) or "none"
        raise InputError(f"{run.run_id} has no snapshot of step {step}: choose one of these steps: {there}.")
    fault = fault_of(run, step)
    if fault:
        raise InputError(f"{run.run_id}'s snapshot of step {step} is damaged ({fault}): {way_out(run, step)}.")
    return step


# ---- names ---------------------------------------------------------------------------------------------------------


def _free_stem(readable: str, owner: str, learned: bool) -> str:
    """`readable`, followed by `owner` if a LoRA or a word of that name is not this run's."""
    folders = {loras_folder(), *lora_folders(), *([embeddings_folder()] if learned else [])}
    places = [inside(folder, f"{readable}.safetensors") for folder in folders]
    taken = any(not _is_of(place, owner) for place in [*places, *(words_named(readable) if learned else [])])
    return f"{readable}_{owner}" if taken else readable


def _is_of(path: Path, owner: str) -> bool:
    """Whether a run may write there: the path is free, or holds what the run itself published."""
    if not path.exists() and not path.is_symlink():
        return True
    try:
        return open_tensor_file(path).metadata.get(OWNER) == owner
    except (OSError, InputError):
        return False


# ---- files ---------------------------------------------------------------------------------------------------------


def _publish_word(source: Path, target: Path, owner: str) -> None:
    _PUBLISHED.add(target)
    rows, metadata = read_tensors(source)
    if not _holds(target, rows):
        stems = source.stem, target.stem
        _write(target, rows, renamed_metadata(metadata, embedding=stems, stem=target.stem, owner=owner))


def _publish_picture(target: Path, picture: Image.Image, owner: str) -> None:
    """Write the picture, unless there is one that is not the run's, such as the user's own choice."""
    if target.exists() and png_text(target, OWNER) != owner:
        return
    about = PngImagePlugin.PngInfo()
    about.add_text(OWNER, owner)
    with contextlib.suppress(InputError):  # the LoRA is written; a missing picture is no reason to fail
        atomic_write(target, partial(picture.save, format="PNG", pnginfo=about))


def _holds(target: Path, tensors: dict[str, Tensor]) -> bool:
    try:
        there, _ = read_tensors(target)
    except (OSError, InputError):
        return False
    return there.keys() == tensors.keys() and all(torch.equal(there[name], tensors[name]) for name in there)


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{target.parent} cannot be made ({error.strerror}): make it, or correct its permissions."
        ) from None
    sweep(target.parent)
    write_tensors(target, tensors, fit_metadata(metadata, tensors))

"""From wires and widgets to a finished run: found on disk, resumed, or trained.

In: the order of steps. Not in: widgets (`train`), messages to the browser (`watch`), files (`run_store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..apt_train.config import TrainConfig
from ..apt_train.data.dataset import ImageSet
from ..apt_train.data.tensor_pictures import unbatch
from ..apt_train.errors import InputError
from ..apt_train.events import BusyEvent
from ..apt_train.families.precision import resolve_dtype
from ..apt_train.presets import PUBLISHED
from ..apt_train.run.content import Content
from ..apt_train.wording import listed
from .host.components import Wires
from .host.copies import copy_notices
from .host.memory import training_room
from .host.progress import NodeProgress, cancelled_at_exit, throttled_progress
from .host.weights import DigestCache
from .published import Published, check_places, open_run, publish
from .run_store import (
    RESTARTED,
    ended_step,
    find_folder,
    holds_run,
    is_damaged,
    is_restart_to_finish,
    lacks_report,
    set_aside,
    steps_done,
    was_restarted,
)
from .watch import Watch, say_finished, tell_found
from .wires import AptOptions, AptRun

_DIGESTS = DigestCache()  # lives as long as the host process: hashing gigabytes for every prompt would be slow


@dataclass(frozen=True)
class Job:
    """What to train."""

    wires: Wires
    images: ImageSet
    prior_images: ImageSet | None
    config: TrainConfig
    restart: bool
    preset: str = PUBLISHED  # the preset the settings came from


def image_set(
    images: Sequence[Tensor], captions: Sequence[str] | None, masks: Sequence[Tensor] | None, options: AptOptions
) -> ImageSet:
    """The host's lists as the trainer's pictures.

    `captions`: one per picture, or a single text with one line per picture. Load Image's mask for a picture without
    transparency (64 x 64, all zero) counts as none. InputError: as in `ImageSet.from_tensors`.
    """
    singles = unbatch(images, 3)
    lines: Sequence[str] | str | None = captions
    if captions is not None and len(captions) == 1 and len(singles) > 1:
        lines = captions[0]
    weights = None if masks is None else _weights(singles, masks, options.mask_counts)
    return ImageSet.from_tensors(singles, lines, weights, options.background, alpha_masks=options.alpha_masks)


def inverted_masks(images: ImageSet, counts: str) -> list[str]:
    """A sentence on masks that leave out what most photographs show, as Load Image's MASK of a cut-out picture does."""
    from ..apt_train.photo_check.look import edges_and_middle
    from ..apt_train.photo_check.masks import is_inverted

    masks = {image.name: image.mask for image in images.images}
    names = [
        name for name, mask in masks.items() if mask is not None and is_inverted(*edges_and_middle(mask / mask.max()))
    ]
    if not names:
        return []
    return [
        f"Masks that look inverted: {listed(names, 5)}. They leave the middle out, so the background is learned in "
        f"place of the subject: set mask_counts to {'white' if counts == 'black' else 'black'} in APT Data Options."
    ]


def _weights(pictures: list[Tensor], masks: Sequence[Tensor], counts: str) -> list[Tensor]:
    singles = unbatch(masks, 2)
    if len(singles) != len(pictures):
        raise InputError(
            f"The number of masks is {len(singles)}, of images {len(pictures)}: wire one mask per image, or none."
        )
    return [_weight(picture, mask, counts) for picture, mask in zip(pictures, singles, strict=True)]


def _weight(picture: Tensor, mask: Tensor, counts: str) -> Tensor:
    is_no_mask = tuple(mask.shape) == (64, 64) != tuple(picture.shape[:2]) and not bool(mask.any())
    if is_no_mask:
        return torch.ones(picture.shape[:2])
    mask = mask.float() if mask.dtype == torch.bool else mask
    return 1 - mask if counts == "black" else mask


def finished_run(job: Job, node_id: str) -> tuple[AptRun, Published]:
    """The run of this job at its last step; trains whatever is not on disk yet.

    InputError: it cannot be trained. The host's own exception: the user pressed Cancel; the work is saved, and the same
    job continues from there.
    """
    check_places(job.config)
    progress = NodeProgress(node_id, job.config.steps)
    with progress.tells_cancel():
        progress.say("reading the weights")
        digest = job.wires.digest(_DIGESTS, throttled_progress(progress.say, "weights"))
    identity = _identity(job, digest)
    folder = find_folder(job.config, identity)
    if job.restart and not is_restart_to_finish(folder, job.config):
        set_aside(folder)
    run = _run_there(folder, job.config, identity)
    done = steps_done(folder)
    trained = done < run.steps or (done == run.steps and (is_damaged(run) or lacks_report(folder, done)))
    if trained:
        with cancelled_at_exit(), Watch(run, job.config, node_id, job.preset) as watch, training_room():
            _train(job, digest, folder, watch)
        run = _run_there(folder, job.config, identity)
    else:
        tell_found(run, job.config, node_id)
    published = publish(run)
    say_finished(node_id, run, published.trigger, trained, by_itself=run.steps < job.config.steps)
    return run, published


def _run_there(folder: Path, config: TrainConfig, identity: str) -> AptRun:
    """The run at its last step: the requested one, or an earlier one at which a stopping rule ended it."""
    ended = ended_step(folder, config)
    return open_run(folder, config if ended is None else replace(config, steps=ended), identity)


def _identity(job: Job, digest: str) -> str:
    dtype = resolve_dtype(job.config.precision, job.wires.device)
    return Content(digest, job.wires.schedule, job.images, job.prior_images, job.config).hash(dtype)


def _train(job: Job, digest: str, folder: Path, watch: Any) -> None:
    from ..apt_train.training.train import train  # imports diffusers and peft, which takes seconds, so only here

    device = job.wires.device
    watch(BusyEvent("weights", steps_done(folder)))
    components = job.wires.components(resolve_dtype(job.config.precision, device), digest)
    components.notes.extend(copy_notices())
    train(
        components,
        job.images,
        job.config,
        prior_images=job.prior_images,
        output_dir=folder,
        resume=holds_run(folder),
        device=device,
        on_event=watch,
        record={
            "source": components.source,
            RESTARTED: job.restart or was_restarted(folder),
            "preset": job.preset,
        },  # fmt: skip
    )

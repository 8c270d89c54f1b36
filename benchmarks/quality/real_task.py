"""The benchmark on a checkpoint of SD1.5 or SDXL and a folder of real subjects."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from .real_judge import RealJudge, load_networks
from .real_subjects import real_subject, subject_names
from .task import CONSTANTS, Task

SAMPLING_STEPS, GUIDANCE = 25, 7.5  # DDIM steps (ours), within the usual range of either family
SAMPLING_BATCH = 8  # guidance doubles the batch in the UNet


def real_task(
    checkpoint: Path,
    subjects: Path,
    clip: Path,
    dino: Path | None = None,
    hps: Path | None = None,
    *,
    device: str | None = None,
    share: float = 1.0,
) -> Task:
    """The trainer's defaults, which are DCO's published recipe (rank 32, learning rate 5e-5, batch 1, 2000 steps).

    APT's constants come from the grids, so that units keep their meaning when a default changes.

    Args:
        checkpoint: A .safetensors or a diffusers folder.
        subjects: See `real_subjects`.
        clip, dino, hps: transformers folders of CLIP, DINOv2 and HPSv2; see `real_judge`.
        device: None means CUDA if available. The judge's networks stay on it, beside the checkpoint.
        share: Of the usual number of prompts.

    Raises:
        InputError: subjects or networks that cannot be used. The checkpoint is not opened yet.
    """
    subject_names(subjects)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Task(
        name=f"{checkpoint.stem} on {subjects.resolve().name}",
        checkpoint=checkpoint,
        recipe={"identifier": "the_subject", "apt": CONSTANTS},
        subject=functools.partial(real_subject, folder=subjects, share=share),
        judge=functools.partial(RealJudge, networks=load_networks(clip, dino, hps, device=place)),
        sampling_steps=SAMPLING_STEPS,
        guidance=GUIDANCE,
        sampling_batch=SAMPLING_BATCH,
        device=place,
    )

"""Draws pictures with the host's own sampler, with a LoRA at any strength and the learned word of any snapshot.

In: text, sampling, decoding. Not in: which pictures to draw (`snapshot_sheet`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
from PIL import Image

from .pictures import pil_image
from .preview_latent import empty_latent

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class Drawing:
    """How the pictures of a sheet are drawn. `width`, `height`: pixels, multiples of 8; 0: the model's own size."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int


def draw(model: Any, positive: Any, negative: Any, vae: Any, how: Drawing) -> Image.Image:
    """One picture from conditionings. Raises the host's own exception if the user pressed Cancel."""
    latent = empty_latent(model, how.height, how.width)
    noise = comfy.sample.prepare_noise(latent, how.seed)
    drawn = comfy.sample.sample(
        model, noise, how.steps, how.cfg, how.sampler, how.scheduler, positive, negative, latent, seed=how.seed,
        disable_pbar=True,
    )  # fmt: skip
    return pil_image(vae.decode(drawn)[0])


def knowing(clip: Any, folder: Path) -> Any:
    """A CLIP whose prompts also find the learned words below a folder; the original is unchanged."""
    known = clip.clone()
    known.tokenizer = copy.copy(clip.tokenizer)
    for name, part in vars(clip.tokenizer).items():
        if hasattr(part, "embedding_directory"):
            own = copy.copy(part)
            own.embedding_directory = [str(folder), *_listed(part.embedding_directory)]
            setattr(known.tokenizer, name, own)
    return known


def _listed(folders: Any) -> list[str]:
    return [folders] if isinstance(folders, str) else list(folders or ())

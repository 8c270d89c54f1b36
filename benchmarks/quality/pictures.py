"""Pictures of a benchmark's prompts, by the prior or a tuned model, with the same noise for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from apt_train.adapter import check_no_adapter
from apt_train.families.components import Components
from apt_train.sample.sampler import Drawing, Sampler
from apt_train.text.conditioning import Conditioner
from apt_train.training.vae_visits import vae_on

from .task import Task


def draw_pictures(
    task: Task, components: Components, conditioner: Conditioner, texts: Sequence[str], *, tuned: bool, seed: int
) -> list[Image.Image]:
    """One picture per prompt. Picture k starts from the noise of (seed, k)."""
    unet: Any = components.unet
    side = components.family.resolution
    with torch.no_grad(), vae_on(components, conditioner.device):
        text, nothing = conditioner.encode(list(texts), tuned=tuned), conditioner.encode([""], tuned=False)
        sampler = Sampler(components, (side, side), conditioner.device, unet.dtype, task.sampling_batch)
        return sampler.draw(text, nothing, Drawing(seed, task.sampling_steps, task.guidance))


def prior_pictures(
    task: Task, components: Components, conditioner: Conditioner, texts: Sequence[str], seed: int
) -> list[Image.Image]:
    """The prior's pictures, sampled once and cached. InputError: a LoRA is on the UNet, so it is not the prior."""
    check_no_adapter(components.unet)
    class_word = conditioner.class_word if any("{subject}" in text for text in texts) else None

    def make() -> dict[str, torch.Tensor]:
        pictures = draw_pictures(task, components, conditioner, texts, tuned=False, seed=seed)
        return {"pixels": torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))}

    key = {"of": "pictures", "texts": list(texts), "class": class_word, "seed": seed}
    return [Image.fromarray(pixels.numpy()) for pixels in task.cached(key, make)["pixels"]]

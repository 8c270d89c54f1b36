"""The demo's pictures: each prompt drawn by the prior and by a trained run, with the same seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from ..config import TrainConfig
from ..events import TrainResult
from ..families.components import Components
from ..sample.apply import personalized
from ..sample.sampler import Drawing, Sampler
from ..text.conditioning import Conditioner

SAMPLES = 8  # pictures per prompt behind each fidelity figure; the sheet shows the first


def draw_pictures(
    components: Components, result: TrainResult, config: TrainConfig, settings: dict[str, Any], seed: int
) -> dict[str, list[list[Image.Image]]]:
    """Prior and tuned pictures per prompt, `SAMPLES` of each, with the same seeds."""
    prompts = [entry["prompt"] for entry in settings["prompts"]]
    with personalized(components, result.lora, result.embeddings, config) as (conditioner, adapter):
        draw = _sampler(components, conditioner, settings, seed)
        with adapter.disabled():
            prior = [draw(prompt, False) for prompt in prompts] if config.method == "dreambooth" else []
        return {"prior": prior, "tuned": [draw(prompt, True) for prompt in prompts]}


def _sampler(
    components: Components, conditioner: Conditioner, settings: dict[str, Any], seed: int
) -> Callable[[str, bool], list[Image.Image]]:
    side, how = components.family.resolution, settings["sampling"]
    drawing = Drawing(seed, how["steps"], how["guidance"])
    sampler = Sampler(components, (side, side), "cpu", torch.float32, batch_size=SAMPLES)

    @torch.no_grad()
    def draw(prompt: str, tuned: bool) -> list[Image.Image]:
        conditioning = conditioner.encode([prompt] * SAMPLES, tuned=tuned)
        return sampler.draw(conditioning, conditioner.encode([""], tuned=False), drawing)

    return draw

"""The demo's pictures: each prompt drawn by the prior and by a trained run, with the same seeds."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from ..config import TrainConfig
from ..events import TrainResult
from ..families.components import Components
from ..sample.apply import personalized
from ..sample.sampler import Drawing, Sampler, previews

SAMPLES = 8  # pictures per prompt behind each fidelity figure; the sheet shows the first


def draw_pictures(
    components: Components, result: TrainResult, config: TrainConfig, settings: dict[str, Any]
) -> dict[str, list[list[Image.Image]]]:
    """Prior and tuned pictures per prompt, `SAMPLES` of each, with the same seeds."""
    side, how = components.family.resolution, settings["sampling"]
    drawing = Drawing(config.seed, how["steps"], how["guidance"])
    sampler = Sampler(components, (side, side), "cpu", torch.float32, batch_size=SAMPLES)
    prior: list[Image.Image] | None = None if config.method == "dreambooth" else []  # drawn for the first row alone
    with personalized(components, result.lora, result.embeddings, config) as (conditioner, adapter):
        pairs = [
            previews(sampler, adapter, conditioner, [entry["prompt"]] * SAMPLES, drawing, prior)
            for entry in settings["prompts"]
        ]
    return {"prior": [before for before, _ in pairs], "tuned": [after for _, after in pairs]}

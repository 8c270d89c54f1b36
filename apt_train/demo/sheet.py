"""The demo's sheet: each prompt drawn by the prior and by both methods with the same seeds, with the judge's scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ..config import METHOD_TITLES, TrainConfig
from ..disk.files import atomic_write, write_text
from ..errors import InputError
from ..events import TrainResult
from ..families.components import Components
from ..report.grid import labelled_grid
from ..sample.apply import personalized
from ..sample.sampler import Drawing, Sampler, from_pictures, previews
from .judge import Judge, load_judge
from .recipe import DEMO

SAMPLES = 8  # pictures per prompt behind each fidelity figure; the sheet shows the first
TILE = 128
SHEET, NUMBERS = "demo.png", "demo.json"


def check_place(output: Path) -> None:
    """InputError: a user's file would be overwritten."""
    for name in (SHEET, NUMBERS):
        if os.path.lexists(output / name):
            raise InputError(f"{output} holds a {name} already: choose another output folder.")


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


def write_sheet(output: Path, rows: dict[str, list[list[Image.Image]]], settings: dict[str, Any]) -> Path:
    numbers = {name: measure(pictures, rows["prior"], settings) for name, pictures in rows.items()}
    labels = [_label(name, numbers[name]) for name in rows]
    tiles = [[_enlarged(column[0]) for column in pictures] for pictures in rows.values()]
    sheet = labelled_grid(tiles, labels, [entry["title"] for entry in settings["prompts"]])
    path = output / SHEET
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
    write_text(output / NUMBERS, json.dumps({"samples_per_prompt": SAMPLES, **numbers}, indent=1) + "\n")
    for label in labels:
        print(label.replace("\n", ", "))
    return path


def _label(name: str, numbers: dict[str, float]) -> str:
    title = METHOD_TITLES.get(name, name)  # the prior is no method
    lines = [f"subject {numbers['subject_fidelity']:.2f}", f"prompt kept {numbers['prompt_kept']:.0%}"]
    return "\n".join([title, *lines, f"scene kept {numbers['scene_kept']:.2f}"])


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST)


def measure(
    pictures: list[list[Image.Image]], prior: list[list[Image.Image]], settings: dict[str, Any]
) -> dict[str, float]:
    """The judge's scores for one row, pictures per prompt; `prior`: the prior's pictures from the same seeds.

    `subject_fidelity`: mean cosine to held-out pictures of the subject, over the prompts that name it. `prompt_kept`:
    share of the prompts' words for ground, place, style, shape and colour that were found. `scene_kept`: mean cosine of
    the scene around the object to the prior's, over every prompt but the training one.
    """
    judge, entries = load_judge(), settings["prompts"]
    named = [column for column, entry in zip(pictures, entries, strict=True) if "{subject}" in entry["prompt"]]
    others = [i for i, entry in enumerate(entries) if entry["prompt"] != settings["training_prompt"]]
    scene, reference = (judge.features(_joined([row[i] for i in others]), part="scene") for row in (pictures, prior))
    asked = [(column, entry["expect"]) for column, entry in zip(pictures, entries, strict=True)]
    hits = [hit for column, expected in asked for hit in _hits(judge, column, expected)]
    return {
        "subject_fidelity": float(judge.fidelity(_joined(named), _heldout()).mean()),
        "prompt_kept": sum(hits) / len(hits),
        "scene_kept": float(F.cosine_similarity(scene, reference).mean()),
    }


def _hits(judge: Judge, column: list[Image.Image], expected: dict[str, str]) -> list[bool]:
    seen = judge.classify(_joined([column]))
    return [found == wanted for part, wanted in expected.items() for found in seen[part]]


def _heldout() -> torch.Tensor:
    return _joined([[Image.open(path).convert("RGB") for path in sorted((DEMO / "heldout").glob("*.png"))]])


def _joined(columns: list[list[Image.Image]]) -> torch.Tensor:
    """Pictures of one size, column by column -> float (N, 3, H, W) in [-1, 1]."""
    return from_pictures([picture for column in columns for picture in column])

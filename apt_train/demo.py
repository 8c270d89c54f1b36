"""The demo: DreamBooth and APT on the embedded model, drawn on one sheet beside the prior.

In: which runs, which pictures, the sheet. Not in: the embedded model itself (assets/drawn_world, made by
benchmarks/world), the training (loop.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from .adapter import adapter_disabled
from .apply import personalized
from .checkpoint import load_checkpoint
from .components import Components
from .conditioning import Conditioner
from .config import TrainConfig
from .dataset import ImageSet, load_images
from .events import TrainResult
from .files import atomic_write
from .judge import Judge, load_judge
from .loop import train
from .progress import Progress
from .report.grid import labelled_grid
from .sample import sample

ASSETS = Path(__file__).parent / "assets"
MODEL = ASSETS / "drawn_world"
DEMO = ASSETS / "demo"
SAMPLES = 8  # pictures per prompt behind each fidelity figure; the sheet shows the first
TILE = 128


def run_demo(output: Path, *, steps: int | None = None, seed: int = 0) -> Path:
    """Train both, draw the sheet, and return its path. The runs stay beside it, with their reports.

    InputError: `output` holds something else already.
    """
    settings = json.loads((DEMO / "recipe.json").read_text(encoding="utf-8"))
    components, images = load_checkpoint(MODEL), load_images(DEMO / "subject")
    rows: dict[str, list[list[Image.Image]]] = {}
    for method in ("dreambooth", "apt"):
        config = demo_config(settings, method, steps=steps, seed=seed)
        result = _train(components, images, config, output / method)
        pictures = _draw(components, result, config, settings, seed)
        rows.setdefault("prior", pictures["prior"])
        rows[method] = pictures["tuned"]
    return _write_sheet(output, rows, settings)


def demo_config(settings: dict[str, Any], method: str, *, steps: int | None, seed: int) -> TrainConfig:
    """Both runs share one recipe (`recipe.json`) and differ in the method alone; DreamBooth's indicator is watched."""
    recipe = {**settings["recipe"], "class_word": settings["class_word"], "method": method, "seed": seed}
    if steps is not None:
        recipe["steps"] = steps
    recipe["apt"] = {**recipe.get("apt", {}), "watch_indicator": True}
    return TrainConfig.from_dict(recipe)


def _train(components: Components, images: ImageSet, config: TrainConfig, folder: Path) -> TrainResult:
    print(f"{config.method}: {config.steps} steps")
    with Progress("cpu") as progress:
        return train(components, images, config, output_dir=folder, device="cpu", on_event=progress)


def _draw(
    components: Components, result: TrainResult, config: TrainConfig, settings: dict[str, Any], seed: int
) -> dict[str, list[list[Image.Image]]]:
    """Prior and tuned pictures per prompt, `SAMPLES` of each, with the same seeds."""
    prompts = [entry["prompt"] for entry in settings["prompts"]]
    with personalized(
        components, result.lora, result.embeddings, name=config.name, class_word=config.class_word
    ) as conditioner:
        draw = _sampler(components, conditioner, settings, seed)
        with adapter_disabled(components.unet):
            prior = [draw(prompt, False) for prompt in prompts] if config.method == "dreambooth" else []
        return {"prior": prior, "tuned": [draw(prompt, True) for prompt in prompts]}


def _sampler(
    components: Components, conditioner: Conditioner, settings: dict[str, Any], seed: int
) -> Callable[[str, bool], list[Image.Image]]:
    side = components.family.resolution

    @torch.no_grad()
    def draw(prompt: str, tuned: bool) -> list[Image.Image]:
        conditioning = conditioner.encode([prompt] * SAMPLES, tuned=tuned)
        return sample(
            components,
            conditioning,
            conditioner.encode([""], tuned=False),
            seed=seed,
            steps=settings["sampling"]["steps"],
            guidance=settings["sampling"]["guidance"],
            height=side,
            width=side,
            device="cpu",
            dtype=torch.float32,
            batch_size=SAMPLES,
        )

    return draw


# -- the sheet


def _write_sheet(output: Path, rows: dict[str, list[list[Image.Image]]], settings: dict[str, Any]) -> Path:
    scores = {name: subject_fidelity(pictures, settings) for name, pictures in rows.items()}
    kept = {name: prompt_kept(pictures, settings) for name, pictures in rows.items()}
    titles = {"prior": "prior", "dreambooth": "DreamBooth", "apt": "APT"}
    labels = [f"{titles[name]}\nsubject {scores[name]:.2f}\nprompt kept {kept[name]:.0%}" for name in rows]
    tiles = [
        [column[0].resize((TILE, TILE), Image.Resampling.NEAREST) for column in pictures] for pictures in rows.values()
    ]
    sheet = labelled_grid(tiles, labels, [entry["title"] for entry in settings["prompts"]])
    path = output / "demo.png"
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
    numbers = {name: {"subject_fidelity": scores[name], "prompt_kept": kept[name]} for name in rows}
    text = json.dumps({"samples_per_prompt": SAMPLES, **numbers}, indent=1)
    atomic_write(output / "demo.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for label in labels:
        print(label.replace("\n", ", "))
    return path


def subject_fidelity(pictures: list[list[Image.Image]], settings: dict[str, Any]) -> float:
    """Mean cosine, by the judge, to held-out pictures of the subject, over the prompts that name it."""
    judge = load_judge()
    heldout = _as_tensor([Image.open(path).convert("RGB") for path in sorted((DEMO / "heldout").glob("*.png"))])
    named = [
        column for column, entry in zip(pictures, settings["prompts"], strict=True) if "{subject}" in entry["prompt"]
    ]
    return float(judge.fidelity(_as_tensor([picture for column in named for picture in column]), heldout).mean())


def prompt_kept(pictures: list[list[Image.Image]], settings: dict[str, Any]) -> float:
    """Share of the ground, place and style words of the prompts that the judge finds in the pictures."""
    judge = load_judge()
    hits = [
        hit for column, entry in zip(pictures, settings["prompts"], strict=True) for hit in _hits(judge, column, entry)
    ]
    return sum(hits) / len(hits)


def _hits(judge: Judge, column: list[Image.Image], entry: dict[str, Any]) -> list[bool]:
    seen = judge.classify(_as_tensor(column))
    return [found == wanted for part, wanted in entry["expect"].items() for found in seen[part]]


def _as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size -> float (N, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

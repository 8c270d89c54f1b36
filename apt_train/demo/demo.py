"""The demo: DreamBooth and APT on the embedded model, drawn on one sheet beside the prior.

In: which runs, which pictures, the sheet. Not in: the embedded model itself (assets/drawn_world, made by
benchmarks/world), the training (loop.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ..config import TrainConfig
from ..console.progress import Progress
from ..data.dataset import ImageSet, load_images
from ..disk.files import atomic_write, write_text
from ..events import TrainResult
from ..families.components import Components
from ..families.sd import load_checkpoint
from ..report.grid import labelled_grid
from ..run.folder import RunFolder
from ..sample.apply import personalized
from ..sample.sampler import Drawing, Sampler, from_pictures
from ..text.conditioning import Conditioner
from ..training.loop import train
from .judge import Judge, load_judge

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "drawn_world"
DEMO = ASSETS / "demo"
SAMPLES = 8  # pictures per prompt behind each fidelity figure; the sheet shows the first
TILE = 128


def run_demo(output: Path, *, steps: int | None = None, seed: int = 0) -> Path:
    """Train both, draw the sheet, and return its path. The runs stay beside it, with their reports.

    One torch thread, so that machines with more of them draw the same sheet. InputError: `output` holds something
    else already.
    """
    with _one_thread():
        return _run(output, steps, seed)


def _run(output: Path, steps: int | None, seed: int) -> Path:
    settings = recipe()
    configs = {method: demo_config(settings, method, steps=steps, seed=seed) for method in ("dreambooth", "apt")}
    for method, config in configs.items():
        RunFolder.open_new(output / method, config.name)  # refused before the first of them is trained
    components, images = load_checkpoint(MODEL), load_images(DEMO / "subject")
    rows: dict[str, list[list[Image.Image]]] = {}
    for method, config in configs.items():
        result = _train(components, images, config, output / method)
        print(f"{method}: drawing pictures")  # as long as the training itself
        pictures = _draw(components, result, config, settings, seed)
        rows.setdefault("prior", pictures["prior"])
        rows[method] = pictures["tuned"]
    return _write_sheet(output, rows, settings)


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recipe() -> dict[str, Any]:
    """The demo's settings and prompts: `assets/demo/recipe.json`."""
    return json.loads((DEMO / "recipe.json").read_text(encoding="utf-8"))


def demo_config(settings: dict[str, Any], method: str, *, steps: int | None, seed: int) -> TrainConfig:
    """Both runs share one recipe (`recipe.json`) and differ in the method alone; DreamBooth's indicator is watched."""
    recipe: dict[str, Any] = {
        **settings["recipe"],
        "class_word": settings["class_word"],
        "method": method,
        "seed": seed,
    }
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
    with personalized(components, result.lora, result.embeddings, name=config.name, class_word=config.class_word) as (
        conditioner,
        adapter,
    ):
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


# -- the sheet


def _write_sheet(output: Path, rows: dict[str, list[list[Image.Image]]], settings: dict[str, Any]) -> Path:
    numbers = {name: measure(pictures, rows["prior"], settings) for name, pictures in rows.items()}
    labels = [_label(name, numbers[name]) for name in rows]
    tiles = [[_enlarged(column[0]) for column in pictures] for pictures in rows.values()]
    sheet = labelled_grid(tiles, labels, [entry["title"] for entry in settings["prompts"]])
    path = output / "demo.png"
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
    text = json.dumps({"samples_per_prompt": SAMPLES, **numbers}, indent=1) + "\n"
    write_text(output / "demo.json", text)
    for label in labels:
        print(label.replace("\n", ", "))
    return path


def _label(name: str, numbers: dict[str, float]) -> str:
    title = {"prior": "prior", "dreambooth": "DreamBooth", "apt": "APT"}[name]
    lines = [f"subject {numbers['subject_fidelity']:.2f}", f"prompt kept {numbers['prompt_kept']:.0%}"]
    return "\n".join([title, *lines, f"scene kept {numbers['scene_kept']:.2f}"])


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST)


def measure(
    pictures: list[list[Image.Image]], prior: list[list[Image.Image]], settings: dict[str, Any]
) -> dict[str, float]:
    """What the judge says of one row, pictures per prompt; `prior`: the prior's pictures of the same seeds.

    `subject_fidelity`: mean cosine to held-out pictures of the subject, over the prompts that name it. `prompt_kept`:
    share of the prompts' ground, place, style, shape and colour words found. `scene_kept`: mean cosine of the scene
    around the object to the prior's, over every prompt but the training one.
    """
    judge, entries = load_judge(), settings["prompts"]
    named = [column for column, entry in zip(pictures, entries, strict=True) if "{subject}" in entry["prompt"]]
    others = [i for i, entry in enumerate(entries) if entry["prompt"] != settings["training_prompt"]]
    scene, reference = (judge.features(_joined([row[i] for i in others]), part="scene") for row in (pictures, prior))
    hits = [
        hit for column, entry in zip(pictures, entries, strict=True) for hit in _hits(judge, column, entry["expect"])
    ]
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
    """Pictures of one size, column after column -> float (N, 3, H, W) in [-1, 1]."""
    return from_pictures([picture for column in columns for picture in column])

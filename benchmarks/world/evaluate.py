"""Sample a model of the drawn world and let the judge score the pictures.

    python -m benchmarks.world.evaluate --model apt_train/assets/drawn_world --samples 500

writes ``accuracy.json`` (shares of correct answers), ``confusion.md`` (asked x seen, per attribute) and
``sample_sheet.png`` into the model folder.  Prompts are full captions of combinations that pretraining never drew
(:func:`benchmarks.world.draw.is_fresh`), so no result can be a memory of one training picture.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from apt_train.demo.judge import Judge, load_judge
from benchmarks.world import draw
from benchmarks.world.train_judge import JUDGED, truth

PROMPT_SEED = 4711
#: The attributes that count for "the prompt came out right".
JOINT = ("colours", "shape", "ground", "style")

SHEET_PROMPTS = (
    "a red ball on grass in the park",
    "a blue mug on wood in the city",
    "a striped red and white car on sand in the mountains",
    "a green duck on water at night",
    "a toy on snow in the park",
    "a bag on bricks in the city",
    "a vase on grass in the mountains",
    "a dotted blue and yellow hat on sand at night",
)


def fresh_scenes(count: int) -> list[draw.Scene]:
    """Scenes with an object whose combination of shape, colour, ground and style is held out of pretraining."""
    rng = np.random.default_rng(PROMPT_SEED)
    scenes: list[draw.Scene] = []
    while len(scenes) < count:
        scene = draw.random_scene(rng)
        if draw.is_fresh(scene):
            scenes.append(scene)
    return scenes


def load_pipeline(model: Path) -> StableDiffusionPipeline:
    """The model folder as a quiet fp32 pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float, steps: int, seed: int) -> Tensor:
    """One picture per prompt, float (N, 3, 64, 64) in [-1, 1]; picture i depends on ``seed + i`` alone."""
    pictures = []
    for start in range(0, len(prompts), 50):
        batch = prompts[start : start + 50]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        result: Any = pipeline(
            batch, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt",
            height=draw.SIZE, width=draw.SIZE,
        )  # fmt: skip
        pictures.append(result.images * 2 - 1)
    return torch.cat(pictures)


def to_arrays(images: Tensor) -> list[np.ndarray]:
    """float (N, 3, H, W) in [-1, 1] to uint8 (H, W, 3) arrays."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return list(pixels.cpu().numpy())


def score(judge: Judge, images: Tensor, scenes: list[draw.Scene]) -> tuple[dict[str, float], dict[str, dict]]:
    """Shares of correct pictures by attribute and jointly, and counts ``confusion[attribute][asked][seen]``."""
    seen, asked = judge.classify(images), [truth(scene) for scene in scenes]
    confusion: dict[str, dict[str, dict[str, int]]] = {name: {} for name in JUDGED}
    right = {name: np.zeros(len(scenes), bool) for name in JUDGED}
    for row, wanted in enumerate(asked):
        for name in JUDGED:
            answer = seen[name][row]
            right[name][row] = answer == wanted[name]
            counts = confusion[name].setdefault(wanted[name], {})
            counts[answer] = counts.get(answer, 0) + 1
    shares = {name: float(right[name].mean()) for name in JUDGED}
    shares["jointly " + " + ".join(JOINT)] = float(np.logical_and.reduce([right[name] for name in JOINT]).mean())
    shares["jointly everything"] = float(np.logical_and.reduce(list(right.values())).mean())
    return shares, confusion


def confusion_table(confusion: dict[str, dict]) -> str:
    """The confusion counts as Markdown. Colour pairs are listed only where they are wrong."""
    lines = ["# Confusion tables", "", "Rows: what the prompt asked for.  Columns: what the judge saw."]
    for name, rows in confusion.items():
        lines += ["", f"## {name}", ""]
        if name == "colours":
            errors = [f"| {a} | {s} | {n} |" for a, row in sorted(rows.items()) for s, n in row.items() if s != a]
            lines += ["| asked | seen | count |", "| --- | --- | --- |", *errors]
            continue
        columns = sorted(set(rows) | {label for row in rows.values() for label in row})
        lines += ["| asked | " + " | ".join(c or "(none)" for c in columns) + " |", "| --- " * (len(columns) + 1) + "|"]
        lines += [
            f"| {a} | " + " | ".join(str(row.get(c, 0)) for c in columns) + " |" for a, row in sorted(rows.items())
        ]
    return "\n".join(lines) + "\n"


def sample_sheet(pipeline: StableDiffusionPipeline, guidance: float, steps: int) -> Image.Image:
    """Styles down, prompts across, each picture twice its size."""
    prompts = [f"{phrase} {what}" for phrase in draw.STYLE_PHRASE.values() for what in SHEET_PROMPTS]
    pictures = to_arrays(sample(pipeline, prompts, guidance, steps, seed=1))
    grid = draw.contact_sheet(pictures, len(SHEET_PROMPTS), zoom=2)
    sheet = Image.new("RGB", (grid.width + 70, grid.height + 44), "white")
    sheet.paste(grid, (70, 44))
    pen = ImageDraw.Draw(sheet)
    cell = grid.width // len(SHEET_PROMPTS)
    for column, what in enumerate(SHEET_PROMPTS):
        words = what.split()
        cut = words.index("on")
        head = " ".join(words[:cut])
        if len(head) > 20:
            head = head.replace(" and ", " and\n")
        pen.multiline_text((72 + column * cell, 4), head + "\n" + " ".join(words[cut:]), fill="black", font_size=10)
    for row, style in enumerate(draw.STYLES):
        pen.text((4, 44 + row * cell + cell // 2), style, fill="black", font_size=12)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("apt_train/assets/drawn_world"))
    parser.add_argument("--judge", type=Path, default=Path("apt_train/assets/drawn_world/judge"))
    parser.add_argument("--out", type=Path, default=None, help="default: the model folder")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = args.out or args.model
    out.mkdir(parents=True, exist_ok=True)
    pipeline, scenes = load_pipeline(args.model), fresh_scenes(args.samples)
    started = time.time()
    images = sample(pipeline, [draw.full_caption(s) for s in scenes], args.guidance, args.steps, seed=10_000)
    shares, confusion = score(load_judge(args.judge), images, scenes)
    setting = {"samples": args.samples, "guidance": args.guidance, "steps": args.steps}
    (out / "accuracy.json").write_text(json.dumps(setting | shares, indent=1) + "\n")
    (out / "confusion.md").write_text(confusion_table(confusion))
    sample_sheet(pipeline, args.guidance, args.steps).save(out / "sample_sheet.png")
    print(json.dumps(setting | shares, indent=1), f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()

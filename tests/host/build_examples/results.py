"""What each template gives, as its thumbnail: pictures of the embedded model, which is no stranger's photograph.

In: one run on the demo's subject, and what the nodes would show of it. Not in: the template itself (`examples`). The
pictures of DreamBooth beside APT are cut out of docs/demo.png, which `python dev.py demo` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import dev
from apt_train.cli import main as command_line
from apt_train.data.dataset import load_images
from apt_train.demo.demo import DEMO, MODEL, demo_config, recipe
from apt_train.families.load import load_checkpoint
from apt_train.names import FILMSTRIP, lora_file
from apt_train.report.grid import font, labelled_grid
from apt_train.report.plots import as_picture, glance_figure
from apt_train.training.train import train
from apt_train.verdict.run_files import read_run

SIDE = 640  # pixels: the template browser shows squares
INK, PAPER, FAINT = "#22262b", "#ffffff", "#68707a"
LETTERS, MARGIN, SMALL = 30, 24, 17
FOOTNOTE = "drawn by the small model in this repository"
CELL, FIRST, APART = 128, (125, 40), 132  # pixels of docs/demo.png
PROMPTS = ("a photo of {subject} on bricks in the city", "a sketch of {subject} on sand")
UNSEEN = "a photo of {subject} on water at night"


def thumbnails(folder: Path) -> dict[str, Image.Image]:
    """By template; the run and the check-up's sheet lie in `folder` after some minutes. Alike on one thread."""
    torch.set_num_threads(1)
    run = trained(folder / "run")
    record, photos = read_run(run), [shown(path, 140) for path in sorted((DEMO / "subject").glob("*.png"))]
    taught = beneath([beside(photos), beside([cell(2, 1), cell(2, 2), cell(2, 3)], 187)])
    return {
        "train_and_generate": square("Your photos in, new scenes out", taught),
        "sdxl_train_and_generate": square("The same with SDXL", beneath([beside(photos), styles()])),
        "compare_prior_dreambooth_apt": square("One seed, three models", compared()),
        "monitor_and_pick_snapshot": square("Watch it overfit, or not", as_picture(glance_figure(record), 840)),
        "pick_a_snapshot": square("Which snapshot is the good one?", Image.open(run / FILMSTRIP).convert("RGB")),
        "attention_preview": square("Where do both models look?", attention(run)),
        "check_a_lora_up": square("What does this LoRA do?", checked(run, folder / "check")),
    }


def trained(folder: Path) -> Path:
    """The demo's APT run, with samples at every snapshot."""
    config = demo_config(recipe(), "apt", steps=None)
    samples = {"preview_prompts": PROMPTS, "unseen_prompt": UNSEEN, "preview_every": 100, "preview_guidance": 4.0}
    config = replace(config, output=replace(config.output, **samples))
    if not (folder / "report.md").exists():
        train(load_checkpoint(MODEL), load_images(DEMO / "subject"), config, output_dir=folder, device="cpu")
    return folder


def checked(run: Path, folder: Path) -> Image.Image:
    """The check-up's sheet."""
    lora = run / lora_file(demo_config(recipe(), "apt", steps=None).name)  # its embedding lies beside it
    given = ["--checkpoint", str(MODEL), "--images", str(DEMO / "subject"), "--class-word", "toy", "--device", "cpu"]
    if not folder.exists():
        assert command_line(["inspect", str(lora), *given, "--out", str(folder)]) == 0
    (sheet,) = folder.glob("*.png")
    return Image.open(sheet).convert("RGB")


def attention(run: Path) -> Image.Image:
    return Image.open(run / "attention.png").convert("RGB")


# ---- pieces ------------------------------------------------------------------------------------------------------


def cell(row: int, column: int) -> Image.Image:
    """Of docs/demo.png: row 0 is the prior, 1 DreamBooth, 2 APT."""
    left, top = FIRST[0] + column * APART, FIRST[1] + row * APART
    return Image.open(dev.ROOT / "docs" / "demo.png").convert("RGB").crop((left, top, left + CELL, top + CELL))


def compared() -> Image.Image:
    rows = [[enlarged(cell(row, column), 160) for column in (0, 2, 3)] for row in range(3)]
    return labelled_grid(rows, ["prior", "Dream-\nBooth", "APT"], ["on grass", "in the city", "at night"], text_size=22)


def styles() -> Image.Image:
    return beside([cell(2, column) for column in (1, 4, 5, 6)], 140)


def shown(path: Path, side: int) -> Image.Image:
    return enlarged(Image.open(path).convert("RGB"), side)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def beside(pictures: Sequence[Image.Image], side: int = 0) -> Image.Image:
    return labelled_grid([[enlarged(one, side) if side else one for one in pictures]], [""], [""] * len(pictures))


def beneath(parts: Sequence[Image.Image]) -> Image.Image:
    """In the middle, with room between them."""
    gap = MARGIN
    size = max(part.width for part in parts), sum(part.height for part in parts) + gap * (len(parts) - 1)
    whole, top = Image.new("RGB", size, PAPER), 0
    for part in parts:
        whole.paste(part, ((size[0] - part.width) // 2, top))
        top += part.height + gap
    return whole


def square(title: str, picture: Image.Image) -> Image.Image:
    """The picture as large as it fits beneath its title; of a higher one the upper part."""
    sheet, top = Image.new("RGB", (SIDE, SIDE), PAPER), MARGIN + LETTERS + MARGIN // 2
    room = SIDE - 2 * MARGIN, SIDE - top - MARGIN - SMALL
    scale = room[0] / picture.width
    fitted = picture.resize((room[0], round(picture.height * scale)), Image.Resampling.LANCZOS).crop((0, 0, *room))
    height = min(room[1], round(picture.height * scale))
    sheet.paste(fitted.crop((0, 0, room[0], height)), (MARGIN, top + (room[1] - height) // 2))
    write = ImageDraw.Draw(sheet)
    write.text((MARGIN, MARGIN), title, INK, font(LETTERS))
    write.text((SIDE - MARGIN, SIDE - MARGIN // 2), FOOTNOTE, FAINT, font(SMALL), anchor="rd")
    return sheet

"""The demo: DreamBooth and APT on the embedded model, on one sheet beside the prior.

In: which runs, in which order. Not in: what they train (`recipe`), the pictures and their sheet (`sheet`), the
embedded model (assets/drawn_world, made by benchmarks/world), the training (`training`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import torch
from PIL import Image

from ..console.progress import Progress
from ..data.dataset import load_images
from ..families.load import load_checkpoint
from ..run.folder import RunFolder
from ..training.train import train
from ..wording import counted
from .recipe import DEMO, MODEL, demo_config, recipe
from .sheet import check_place, draw_pictures, write_sheet


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def run_demo(output: Path, *, steps: int | None = None) -> Path:
    """Train both methods, draw the sheet, and return its path. The runs stay beside it, with their reports.

    It uses a single torch thread, so that the sheet does not depend on the number of cores. InputError: `output`
    already holds something else.
    """
    settings = recipe()
    configs = {method: demo_config(settings, method, steps=steps) for method in ("dreambooth", "apt")}
    for method, config in configs.items():
        RunFolder.open_new(output / method, config.name)  # refuse before the first one is trained
    check_place(output)
    components, images = load_checkpoint(MODEL), load_images(DEMO / "subject")
    rows: dict[str, list[list[Image.Image]]] = {}
    for method, config in configs.items():
        print(f"{method}: {counted(config.steps, 'step')}")
        with Progress("cpu") as progress:
            result = train(components, images, config, output_dir=output / method, device="cpu", on_event=progress)
        print(f"{method}: drawing pictures")  # takes as long as the training itself
        pictures = draw_pictures(components, result, config, settings)
        rows.setdefault("prior", pictures["prior"])
        rows[method] = pictures["tuned"]
    return write_sheet(output, rows, settings)

"""The filmstrip: a run's samples over its snapshots on one sheet, one row per prompt, the prior first.

It helps choose a snapshot by eye: the last one that still obeys the prompt for something the pictures never show. In:
arranging the files in `previews/`. Not in: drawing the samples (`sample.sampler`), labels (`grid`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from ..config import TrainConfig
from ..disk.files import atomic_write
from ..names import FILMSTRIP, PREVIEWS
from ..run.preview_files import find_previews, read_preview
from .grid import fit_label, font, labelled_grid

TILE, LETTERS = 192, 16  # pixels
MOST = 10  # snapshots shown, evenly picked, including the last


def write_filmstrip(folder: Path, config: TrainConfig) -> None:
    """Redraw a run folder's filmstrip; does nothing without samples. InputError: it cannot be written."""
    strip = draw_filmstrip(folder, config)
    if strip is not None:
        atomic_write(folder / FILMSTRIP, partial(strip.save, format="PNG"))


def draw_filmstrip(folder: Path, config: TrainConfig) -> Image.Image | None:
    """The sheet from the current `previews/`; None: no samples. Samples of prompts that the run no longer has, and
    unreadable ones, are skipped."""
    prompts = list(config.sampled_prompts)
    files = {(step, prompt, kind): path for step, prompt, kind, path in find_previews(folder / PREVIEWS)}
    steps = picked(sorted({step for step, _, kind in files if kind == "tuned"}))
    rows = [_row(files, steps, number, prompt) for number, prompt in enumerate(prompts)]
    if not any(tile is not None for row in rows for tile in row[1:]):
        return None
    labels = [prompt_label(config, prompt) for prompt in prompts]
    face = font(LETTERS, "".join(labels))
    names = [fit_label(label, TILE, face) for label in labels]
    return labelled_grid(rows, names, ["prior", *(f"step {step}" for step in steps)], text_size=LETTERS)


def prompt_label(config: TrainConfig, prompt: str) -> str:
    """A sampled prompt as labelled on a sheet; the unseen prompt is marked."""
    return f"unseen: {prompt}" if prompt and prompt == config.unseen_prompt else prompt


def picked(steps: Sequence[int]) -> list[int]:
    """At most `MOST` of the steps, evenly spaced, including the first and the last."""
    if len(steps) <= MOST:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (MOST - 1))] for i in range(MOST)]


def _row(
    files: dict[tuple[int, int, str], Path], steps: Sequence[int], number: int, prompt: str
) -> list[Image.Image | None]:
    tuned = [_tile(files.get((step, number, "tuned")), prompt) for step in steps]
    priors = (_tile(files.get((step, number, "prior")), prompt) for step in reversed(steps))
    return [next((tile for tile in priors if tile is not None), None), *tuned]


def _tile(path: Path | None, prompt: str) -> Image.Image | None:
    """A sample; None: the file is missing, unreadable, or shows another prompt."""
    with contextlib.suppress(ValueError):
        found = None if path is None else read_preview(path)
        if found is not None and found[1] in (None, prompt):
            return found[0].resize((TILE, TILE), Image.Resampling.LANCZOS)
    return None

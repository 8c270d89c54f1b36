"""The previews of a run on disk: `previews/step_000100_0_tuned.png`, and the prior's beside each.

In: what they are called, writing them, finding them. Not in: drawing them (`sample.sampler`).
"""

from __future__ import annotations

import contextlib
import re
from functools import partial
from pathlib import Path

from PIL import Image

from ..disk.files import atomic_write, make_folder

_NAME = re.compile(r"step_([0-9]+)_([0-9]+)_(prior|tuned)\.png")


def preview_file(folder: Path, step: int, prompt: int, kind: str) -> Path:
    """Where a preview lies; `kind`: prior or tuned."""
    return folder / f"step_{step:06d}_{prompt}_{kind}.png"


def save_previews(folder: Path, step: int, **pictures: list[Image.Image]) -> None:
    """Write the pictures of a step, `prior` and `tuned`, one per prompt. RuntimeError: there is no folder for them."""
    if folder.is_file():
        raise RuntimeError(f"{folder} is a file")
    make_folder(folder)
    for kind, drawn in pictures.items():
        for i, picture in enumerate(drawn):
            atomic_write(preview_file(folder, step, i, kind), partial(picture.save, format="PNG"))


def find_previews(folder: Path) -> list[tuple[int, int, str, Path]]:
    """Step, prompt, kind and file of every preview in a folder, rising."""
    found = [(path, match) for path in folder.glob("step_*.png") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2]), match[3], path) for path, match in found)


def drop_newer_previews(folder: Path, step: int) -> None:
    """Remove previews beyond `step`: of steps that were lost, and that a resumed run will train and draw again."""
    if folder.is_symlink():
        return
    for drawn, _prompt, _kind, path in find_previews(folder):
        if drawn > step:
            with contextlib.suppress(OSError):  # open in another program: it will be drawn over
                path.unlink()

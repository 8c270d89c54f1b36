"""A run's previews on disk: `previews/step_000100_0_tuned.png`, and the prior's beside each.

Each file's metadata holds its prompt, because a run's prompts may change between steps.

In: naming, writing, finding and reading them. Not in: drawing them (`sample.sampler`).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..disk.files import atomic_write, make_folder

PROMPT = "prompt"  # key among a PNG's texts
MOST_PIXELS = 1 << 26  # in a preview; larger pictures are not ours
_NAME = re.compile(r"step_([0-9]+)_([0-9]+)_(prior|tuned)\.png")


def preview_file(folder: Path, step: int, prompt: int, kind: str) -> Path:
    """The path of a preview; `kind`: prior or tuned."""
    return folder / f"step_{step:06d}_{prompt}_{kind}.png"


def save_previews(folder: Path, step: int, prompts: Sequence[str], **pictures: list[Image.Image]) -> None:
    """Write the pictures of a step, `prior` and `tuned`, one per prompt. RuntimeError: the folder's place is taken."""
    if folder.is_file():
        raise RuntimeError(f"{folder} is a file")
    make_folder(folder)
    for kind, drawn in pictures.items():
        for i, picture in enumerate(drawn):
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt(PROMPT, prompts[i])
            atomic_write(preview_file(folder, step, i, kind), partial(picture.save, format="PNG", pnginfo=texts))


def read_preview(path: Path) -> tuple[Image.Image, str | None]:
    """A preview, RGB, and its prompt; None for files of an earlier version, which did not store it.

    ValueError: it is not a PNG, damaged, or too large to be a preview.
    """
    with _opened(path) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{path.name} is too large")
        prompt = picture.info.get(PROMPT)
        return picture.convert("RGB"), str(prompt) if prompt is not None else None


def png_text(path: Path, name: str) -> str | None:
    """A text in the metadata of a PNG of any size; None: it has none of that name, is not a PNG, or is damaged."""
    with contextlib.suppress(ValueError), _opened(path) as picture:
        found = picture.info.get(name)
        return str(found) if found is not None else None
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    """Open a PNG and no other format: some of Pillow's readers start programs. ValueError: any failure in the block."""
    try:
        if not path.is_file():  # a pipe would block
            raise OSError("it is not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large pictures
            picture = Image.open(path, formats=("PNG",))
            with picture:
                yield picture
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def find_previews(folder: Path) -> list[tuple[int, int, str, Path]]:
    """Step, prompt, kind and file of every preview in a folder, sorted."""
    found = [(path, match) for path in folder.glob("step_*.png") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2]), match[3], path) for path, match in found)


def drop_newer_previews(folder: Path, step: int) -> None:
    """Remove previews beyond `step`; the resumed run will train and draw those steps again."""
    if folder.is_symlink():
        return
    for drawn, _prompt, _kind, path in find_previews(folder):
        if drawn > step:
            with contextlib.suppress(OSError):  # open in another program: it will be overwritten
                path.unlink()

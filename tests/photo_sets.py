"""Small folders of made-up photographs for the preflight: one that has nothing wrong, and one for each finding.

A photograph is a round subject in front of noise that has as much detail at every scale, as photographs have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

SIDE = 256
TINTS = [(90, 140, 60), (70, 110, 190), (200, 160, 110), (150, 60, 140), (220, 220, 225), (60, 60, 70), (210, 120, 40)]


@dataclass(frozen=True)
class Photo:
    """How one is made. `at`: the subject's middle, in shares of a side; `reach`: its radius, likewise."""

    seed: int
    tint: int = 0
    at: tuple[float, float] = (0.5, 0.5)
    reach: float = 0.25
    size: tuple[int, int] = (SIDE, SIDE)  # width, height

    def draw(self) -> Image.Image:
        picture = background(self.seed, self.tint, self.size).copy()
        texture = background(self.seed + 1000, 6, self.size)
        picture.paste(texture, (0, 0), self.mask())
        return picture

    def mask(self) -> Image.Image:
        """White where the subject is."""
        mask = Image.new("L", self.size)
        (width, height), short = self.size, min(self.size)
        x, y, r = self.at[0] * width, self.at[1] * height, self.reach * short
        ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), 255)
        return mask


@cache
def background(seed: int, tint: int, size: tuple[int, int]) -> Image.Image:
    """Noise of a tint, summed over scales that each have the same share."""
    draw, (width, height) = np.random.default_rng(seed), size
    total = np.zeros((height, width))
    for cells in (3, 6, 12, 24, 48, 96, 192, 384):
        noise = draw.normal(size=(min(cells, height), min(cells, width))).astype(np.float32)
        total += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR))
    values = np.array(TINTS[tint])[None, None] + 14 * total[..., None]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


# Different places, sizes and backgrounds.
GOOD = (
    Photo(1, 0, (0.45, 0.5), 0.3),
    Photo(2, 1, (0.55, 0.6), 0.22),
    Photo(3, 2, (0.5, 0.4), 0.35),
    Photo(4, 3, (0.35, 0.5), 0.2),
)
PLACES = ("grass", "the sea", "sand", "a violet wall")


def save(folder: Path, photos: tuple[Photo, ...] = GOOD, *, masks: bool = False, captions: bool = False) -> Path:
    """Into a folder, as 0.png, 1.png ..."""
    folder.mkdir(exist_ok=True)
    for i, photo in enumerate(photos):
        photo.draw().save(folder / f"{i}.png", compress_level=1)
        if masks:
            photo.mask().save(folder / f"{i}-mask.png")
        if captions:
            (folder / f"{i}.txt").write_text(f"a photo of {{subject}} on {PLACES[i]}", encoding="utf-8")
    return folder


def change(folder: Path, name: str, how: Callable[[Image.Image], Image.Image]) -> None:
    """One picture of a folder, in its place."""
    with Image.open(folder / name) as picture:
        changed = how(picture)
    changed.save(folder / name)


# ---- one folder for each finding, by its kind ----------------------------------------------------------------------


def few(folder: Path) -> None:
    save(folder, GOOD[:2])


def many(folder: Path) -> None:
    save(folder, tuple(Photo(10 + i, i % 7, (0.5, 0.5), 0.1 + 0.005 * i, (64, 64)) for i in range(31)))


def near_duplicate(folder: Path) -> None:
    """The first again, as another JPEG of it would be: smaller, darker."""
    save(folder)
    GOOD[0].draw().resize((240, 240), Image.Resampling.LANCZOS).point(lambda v: int(v * 0.85)).save(folder / "9.png")


def mirrored(folder: Path) -> None:
    save(folder)
    ImageOps.mirror(GOOD[1].draw()).save(folder / "9.png")


def same_background(folder: Path) -> None:
    save(folder, tuple(replace(photo, tint=0) for photo in GOOD))


def blurred(folder: Path) -> None:
    save(folder)
    change(folder, "2.png", lambda picture: picture.filter(ImageFilter.GaussianBlur(2)))


def enlarged(folder: Path) -> None:
    save(folder)
    change(folder, "1.png", lambda picture: picture.resize((160, 160), Image.Resampling.LANCZOS))


def cropped(folder: Path) -> None:
    save(folder, (*GOOD[:3], Photo(4, 3, (0.2, 0.5), 0.3, (1280, 256))))


def inverted(folder: Path) -> None:
    save(folder, masks=True)
    change(folder, "3-mask.png", ImageOps.invert)


def small(folder: Path) -> None:
    save(folder, (*GOOD[:3], replace(GOOD[3], reach=0.08)), masks=True)


def cut_by_crop(folder: Path) -> None:
    save(folder, (*GOOD[:3], Photo(4, 3, (0.1, 0.5), 0.4, (1280, 256))), masks=True)


def cut_off(folder: Path) -> None:
    save(folder, tuple(replace(photo, at=(0.5, 0.95)) for photo in GOOD), masks=True)


def subject_not_named(folder: Path) -> None:
    save(folder, captions=True)
    (folder / "1.txt").write_text("a photo of something in the sea", encoding="utf-8")


def not_in_english(folder: Path) -> None:
    save(folder, captions=True)
    (folder / "3.txt").write_text("фото {subject} у фиолетовой стены 🐻", encoding="utf-8")


def background_not_named(folder: Path) -> None:
    save(folder, captions=True)
    (folder / "2.txt").write_text("a close-up photo of {subject}", encoding="utf-8")


def no_caption(folder: Path) -> None:
    save(folder, captions=True)
    (folder / "0.txt").unlink()


def same_caption(folder: Path) -> None:
    save(folder, captions=True)
    for i in range(len(GOOD)):
        (folder / f"{i}.txt").write_text("a photo of {subject} on grass", encoding="utf-8")


# What is found in each: the kind, and the pictures by name.
FOLDERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "few pictures": (few, []),
    "many pictures": (many, []),
    "near-duplicate": (near_duplicate, ["0.png", "9.png"]),
    "mirrored": (mirrored, ["1.png", "9.png"]),
    "same background": (same_background, ["0.png", "1.png", "2.png", "3.png"]),
    "blurred": (blurred, ["2.png"]),
    "enlarged": (enlarged, ["1.png"]),
    "cropped": (cropped, ["3.png"]),
    "mask inverted?": (inverted, ["3.png"]),
    "subject small": (small, ["3.png"]),
    "subject cropped": (cut_by_crop, ["3.png"]),
    "subject cut off": (cut_off, ["0.png", "1.png", "2.png", "3.png"]),
    "subject not named": (subject_not_named, ["1.png"]),
    "not in English": (not_in_english, ["3.png"]),
    "background not named": (background_not_named, ["2.png"]),
    "no caption": (no_caption, ["0.png"]),
    "same caption": (same_caption, []),
}

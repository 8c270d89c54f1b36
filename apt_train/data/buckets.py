"""Aspect buckets: every picture is resized and cropped to a size of about the same area, near its own shape.

In: the sizes a resolution allows, choosing one, resizing. Not in: latents (`latent_bank`), how a batch stays within
one bucket (`batch`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..wording import listed
from .dataset import ImageSet, TrainImage
from .pictures import resize_mask, to_image

MAX_ASPECT = 3.0  # ours: longer pictures are cropped to this shape
NOTED_CROP = 0.25  # ours: a note is due if more of a picture than this is cropped away
NOTED_SCALE = 1.2  # ours: likewise if it is enlarged more than this many times; less is invisible
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Crop:
    """The part of a picture that is trained on, in its own pixels, and the size it is resized to."""

    bucket: Size  # (height, width)
    scale: float  # above 1: the picture is enlarged
    lost: float  # share of the picture that is cropped away, 0 to 1
    place: Size  # (top, left) in the resized picture
    box: tuple[float, float, float, float]  # left, top, right, bottom in the picture itself


@dataclass(frozen=True)
class Prepared:
    """One picture at its bucket's size."""

    name: str  # for messages
    image: Tensor  # float32 (3, H, W) in [-1, 1]
    mask: Tensor | None  # float32 (1, H, W) in [0, 1]
    original_size: Size  # (height, width) before resizing
    crop: Crop

    @property
    def size_ids(self) -> list[float]:
        """SDXL's: original height and width, crop top and left, target height and width."""
        return [float(value) for value in (*self.original_size, *self.crop.place, *self.crop.bucket)]


def prepare(images: ImageSet, resolution: int, multiple: int) -> list[Prepared]:
    """Resize every picture to cover its bucket and crop the surplus evenly from both ends; masks likewise.

    Args:
        resolution: pixels; a bucket's area is at most its square, and the square itself is one of the buckets.
        multiple: pixels; every side is a multiple of it.

    Raises:
        InputError: the resolution is no multiple of it, or a crop removes everything that a loss mask leaves.
    """
    sizes = bucket_sizes(resolution, multiple)
    return [_fit(image, crop_of(image.size, sizes)) for image in images.images]


def crop_of(size: Size, sizes: list[Size]) -> Crop:
    """How a picture of this (height, width) is brought to the nearest bucket size."""
    (height, width), bucket = size, _nearest(sizes, size)
    scale = max(bucket[0] / height, bucket[1] / width)
    lost = 1 - bucket[0] * bucket[1] / (height * width * scale**2)
    covering = max(bucket[0], round(height * scale)), max(bucket[1], round(width * scale))
    top, left = (covering[0] - bucket[0]) // 2, (covering[1] - bucket[1]) // 2
    # The crop in the picture's own pixels, so that only the kept part is resized, however long the picture is.
    y, x = height / covering[0], width / covering[1]
    return Crop(bucket, scale, lost, (top, left), (left * x, top * y, (left + bucket[1]) * x, (top + bucket[0]) * y))


def picture_at(pixels: Tensor, crop: Crop) -> Image.Image:
    """The picture, uint8 (3, H, W), at its bucket's size."""
    height, width = crop.bucket
    return to_image(pixels).resize((width, height), Image.Resampling.LANCZOS, box=crop.box)


def bucket_multiple(given: int, resolution: int, own: int) -> int:
    """Pixels that a bucket's sides are multiples of: `given`; if that is 0: 64, or `own` below a resolution of 512.

    `own`: what the model itself requires. InputError: `given` is no multiple of it.
    """
    multiple = given or (math.lcm(64, own) if resolution >= 512 else own)
    if multiple % own:
        raise InputError(f"bucket_multiple is {given}: give a multiple of {own}, as the model needs.")
    return multiple


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """All (height, width): for each height the widest within the area, no side more than 3 times the other."""
    _check_resolution(resolution, multiple)
    area = resolution**2
    heights = range(multiple, area // multiple + 1, multiple)
    widest = ((height, area // height // multiple * multiple) for height in heights)
    sizes = {(height, width) for height, width in widest if width}
    sizes |= {(width, height) for height, width in sizes}  # so that tall and wide pictures have the same choice
    return sorted(size for size in sizes if max(size) <= MAX_ASPECT * min(size))


def bucket_notes(prepared: Sequence[Prepared], batch_size: int) -> list[str]:
    """Notes for the user: the sizes if they matter to a batch, and pictures that were enlarged or cropped by much."""
    notes: list[str] = []
    counts = Counter(item.crop.bucket for item in prepared)
    if len(counts) > 1 and batch_size > 1:
        sizes = ", ".join(f"{width} x {height}: {count}" for (height, width), count in sorted(counts.items()))
        notes.append(f"The pictures fall in {len(counts)} sizes ({sizes}). A batch holds pictures of one size.")
    small = [item.name for item in prepared if item.crop.scale > NOTED_SCALE]
    if small:
        notes.append(
            f"Smaller than the training size, so enlarged: {listed(small)}. Larger originals give sharper results."
        )
    cropped = [f"{item.name} loses {item.crop.lost:.0%}" for item in prepared if item.crop.lost > NOTED_CROP]
    if cropped:
        notes.append(
            f"Cropped to the middle, as the shape is far from any training size: {listed(cropped)}. Crop by hand "
            "instead."
        )
    return notes


def _check_resolution(resolution: int, multiple: int) -> None:
    assert multiple > 0
    if resolution > 0 and resolution % multiple == 0:
        return
    below, above = resolution // multiple * multiple, (resolution // multiple + 1) * multiple
    nearest = f"{below} or {above}" if below > 0 else str(max(above, multiple))
    raise InputError(f"resolution is {resolution}, not a multiple of {multiple}: give {nearest}.")


def _nearest(sizes: list[Size], original: Size) -> Size:
    """The bucket nearest in aspect ratio; among equals the largest, then the first."""
    height, width = original

    def distance(size: Size) -> tuple[float, int]:
        # Rounded, so that mirrored shapes tie on every machine.
        return round(abs(math.log(size[1] / size[0] * height / width)), 9), -size[0] * size[1]

    return min(sizes, key=distance)


def _fit(image: TrainImage, crop: Crop) -> Prepared:
    (pixels, mask), bucket = image.read(), crop.bucket
    mask = None if mask is None else resize_mask(mask, bucket, crop.box)
    if mask is not None and not mask.max() > 0:
        raise InputError(
            f"Nothing of {image.name} is left to learn, as its mask is black over the "
            f"{bucket[1]} x {bucket[0]} that are kept: crop it around the subject."
        )
    # Integers up to this point, so that every machine gets the same values.
    tensor = torch.from_numpy(np.array(picture_at(pixels, crop))).permute(2, 0, 1).float() / 127.5 - 1
    return Prepared(image.name, tensor, mask, image.size, crop)

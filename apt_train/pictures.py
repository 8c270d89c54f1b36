"""One picture file: read, turned upright, composed on a background colour, widened to RGB.

In: what Pillow needs to be told for phones' JPEGs, palettes, 16 bits, CMYK, alpha and hostile sizes. Not in:
folders, captions, pairing of masks (`dataset`), resizing to buckets (`buckets`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from .errors import InputError

# Named, so that a file posing as .png cannot start one of Pillow's rarer decoders (EPS runs a program).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # JPEG covers the MPO of phones
MAX_PIXELS = 178_956_970  # Pillow's own limit, kept also where a host has switched it off
Color = tuple[int, int, int]


def parse_color(background: str) -> Color:
    """RGB of a colour name or `#rrggbb`; anything else is an InputError."""
    try:
        return ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"background is {background!r}: give a colour name such as white, or #rrggbb.") from None


def read_picture(path: Path, background: Color) -> tuple[Tensor, Tensor | None]:
    """Pixels uint8 (3, H, W) and the alpha channel float32 (1, H, W) in [0, 1], None where the file has none.

    Raises:
        InputError: naming the file, when it cannot be read or is too large.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path.name, image)
            image.load()
            return _to_tensors(ImageOps.exif_transpose(image), background)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise InputError(f"{path.name} {_reason(error)}: replace it, or leave it out (--skip-bad-images).") from error


def read_mask(path: Path) -> Tensor:
    """A mask file's brightness, float32 (1, H, W) in [0, 1]; transparent counts as black."""
    pixels, _ = read_picture(path, (0, 0, 0))
    grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
    return _unit(grey)


def fit_mask(mask: Tensor, size: tuple[int, int], mask_name: str, name: str) -> Tensor | None:
    """The mask (1, H, W) at its picture's `size` (height, width); None where it is white all over.

    Raises:
        InputError: another shape than the picture's, or a mask that leaves nothing to learn.
    """
    mask_height, mask_width = mask.shape[-2:]
    height, width = size
    slack = 0.01 + 1 / min(mask_height, mask_width)  # rounding to whole pixels is no other shape
    if abs(mask_width * height / (mask_height * width) - 1) > slack:
        raise InputError(
            f"{mask_name} is {mask_width} x {mask_height} but {name} is {width} x {height}: "
            "make the mask from the same picture, at any size of the same shape."
        )
    if not mask.max() > 0:
        raise InputError(f"{mask_name} is black all over, so nothing is left to learn: paint the subject white.")
    return None if mask.min() == 1 else resize_mask(mask, size)


def resize_mask(mask: Tensor, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Tensor:
    """Float32 (1, H, W) in [0, 1] to `size`, (height, width); of its part `box`: left, top, right, bottom."""
    if box is None and tuple(mask.shape[-2:]) == size:
        return mask
    image = Image.fromarray(mask[0].numpy())  # mode F
    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image))[None].clamp(0, 1)


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is {width} x {height} pixels, too many to be read safely: scale it down.")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "has too many pixels to be read safely"
    if isinstance(error, PermissionError):
        return "may not be read (no permission)"
    return "cannot be read as a picture (it is empty, damaged or of another format)"


def _to_tensors(image: Image.Image, background: Color) -> tuple[Tensor, Tensor | None]:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = _unit(image.getchannel("A"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # HWC -> CHW
    return pixels.contiguous(), alpha


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits: Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def _unit(channel: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(channel, dtype=np.float32) / 255)[None]

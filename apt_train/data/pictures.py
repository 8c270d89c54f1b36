"""Reads one picture file: upright, in sRGB, composited over a background colour, as RGB.

In: handling phones' JPEGs, palettes, 16 bits, CMYK, alpha, broken metadata and hostile sizes with Pillow. Not in:
folders and pairing of masks (`folder_files`), resizing to buckets (`buckets`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageFile, features
from torch import Tensor

from ..disk.silenced import stderr_silenced
from ..errors import InputError
from ..wording import printable
from .bare_picture import BareFile, without_metadata
from .color_profiles import ToSrgb, to_srgb

# Listed, so that a file posing as .png cannot start one of Pillow's rarer decoders (EPS runs a program).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # JPEG covers the MPO of phones
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".tga")
_TGA = ".tga"  # has no signature, so only the ending identifies it
MAX_PIXELS = 178_956_970  # Pillow's own limit, enforced even if a host has disabled it
MAX_BYTES = 2**30
_STRIP = 2**20  # pixels converted at a time, so that a large picture is in memory once, not five times
_REMEDY = "replace it, or leave it out (--skip-bad-images)"
Color = tuple[int, int, int]

# {names} is filled in with the pictures' names.
FRAMES = "There are several frames in {names}: the first is taken."
TRANSPARENT = (
    "Transparent parts of {names} are filled with the background colour and count like the rest. In training, alpha "
    "masks leave them out."
)
METADATA = "The metadata of {names} is broken or too large and was ignored: check which way up each picture is."


@dataclass(frozen=True)
class Picture:
    """One picture as read."""

    pixels: Tensor  # uint8 (3, H, W), upright, composited over the background
    alpha: Tensor | None  # float32 (1, H, W) in [0, 1]; None: the file has none
    remarks: tuple[str, ...] = ()  # sentences with a placeholder {names}


def parse_color(background: str) -> Color:
    """RGB of a colour name or `#rrggbb`. InputError: it is neither."""
    try:
        return ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"background is {background!r}: give a colour name such as white, or #rrggbb.") from None


def readable_suffixes() -> tuple[str, ...]:
    """The endings of picture files, including .avif if this Pillow can read it."""
    return (*SUFFIXES, ".avif") if _reads_avif() else SUFFIXES


def is_picture(path: Path) -> bool:
    """Whether a file's content, whatever its ending, is a picture in a supported format."""
    try:
        with _quiet(), Image.open(path, formats=_formats("")):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # a file of any other kind
        return False


def read_picture(path: Path, background: Color, *, is_mask: bool = False) -> Picture:
    """The first frame of a picture file. A mask's numbers are used as they are, whatever its colour profile.

    Raises:
        InputError: naming the file, if it cannot be read or is too large.
    """
    name, failure = printable(path.name), None
    _check_file(name, path)
    with _quiet():
        for source in _sources(path):
            try:
                return _read(name, source, background, is_mask)
            except InputError:
                raise
            except Exception as error:  # decoders raise nearly anything on a broken file
                failure = failure or error
    assert failure is not None
    raise InputError(f"{name} {_reason(failure)}: {_REMEDY}.") from failure


def read_mask(path: Path) -> Tensor:
    """A mask file's brightness, float32 (1, H, W) in [0, 1]; transparent counts as black."""
    pixels = read_picture(path, (0, 0, 0), is_mask=True).pixels
    return torch.from_numpy(_unit(to_image(pixels).convert("L")))[None]


def to_image(pixels: Tensor) -> Image.Image:
    """Convert uint8 (3, H, W) to a Pillow image, in strips so that large ones are not in memory three times."""
    _, height, width = pixels.shape
    image, rows = Image.new("RGB", (width, height)), max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = pixels[:, top : top + rows].permute(1, 2, 0).contiguous()  # CHW -> HWC
        image.paste(Image.fromarray(strip.numpy()), (0, top))
    return image


def fit_mask(mask: Tensor | None, pixels: Tensor, mask_name: str, name: str) -> Tensor | None:
    """The mask (1, H, W) at the size of its picture's `pixels`; None if it is entirely white, or there is none.

    Raises:
        InputError: its shape differs from the picture's, or it leaves nothing to learn.
    """
    if mask is None:
        return None
    (mask_height, mask_width), (height, width) = mask.shape[-2:], pixels.shape[-2:]
    slack = 0.01 + 1 / min(mask_height, mask_width)  # rounding to whole pixels does not make another shape
    if abs(mask_width * height / (mask_height * width) - 1) > slack:
        raise InputError(
            f"{mask_name} is {mask_width} x {mask_height} but {name} is {width} x {height}: "
            "make the mask from the same picture, at any size of the same shape."
        )
    if not mask.max() > 0:
        raise InputError(f"{mask_name} is black all over, so nothing is left to learn: paint the subject white.")
    return None if mask.min() == 1 else resize_mask(mask, (height, width))


def resize_mask(mask: Tensor, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Tensor:
    """Resize float32 (1, H, W) in [0, 1], or its part `box` (left, top, right, bottom), to `size` (height, width)."""
    if box is None and tuple(mask.shape[-2:]) == size:
        return mask
    image = Image.fromarray(mask[0].numpy())  # mode F
    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image))[None].clamp(0, 1)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Suppress Pillow's own warnings, which name no picture; those that matter become remarks or errors here.

    Half a file is refused, even if another part of the program has told Pillow to read the rest as grey.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _reads_avif() -> bool:
    return "avif" in features.modules and bool(features.check_module("avif"))


def _formats(suffix: str) -> tuple[str, ...]:
    more = ("AVIF",) if _reads_avif() else ()
    return (*FORMATS, *more, "TGA") if suffix.lower() == _TGA else (*FORMATS, *more)


def _check_file(name: str, path: Path) -> None:
    """Checks before opening: a pipe would block for ever, and no picture has a gigabyte."""
    try:
        is_file, size = path.is_file(), path.stat().st_size
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): {_REMEDY}.") from error
    if not is_file:
        raise InputError(f"{name} cannot be read, as it is not a file: {_REMEDY}.")
    if size > MAX_BYTES:
        raise InputError(f"{name} takes {size / 2**30:.1f} GB, too much to be read safely: {_REMEDY}.")


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is {width} x {height} pixels, too many to be read safely: scale it down.")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "has too many pixels to be read safely"
    if isinstance(error, PermissionError):
        return "may not be read (no permission)"
    if isinstance(error, MemoryError):
        return "takes more memory than there is"
    return "cannot be read as a picture (it is empty, damaged or of another format)"


def _read(name: str, source: Path | BareFile, background: Color, is_mask: bool) -> Picture:
    file, formats = (
        (io.BytesIO(source.data), FORMATS) if isinstance(source, BareFile) else (source, _formats(source.suffix))
    )
    image = Image.open(file, formats=formats)
    with image:
        _check_size(name, image)
        with stderr_silenced() if image.format == "TIFF" else contextlib.nullcontext():
            image.load()
        _check_values(name, image)
        if isinstance(source, BareFile) and source.profile is not None:
            image.info["icc_profile"] = source.profile
        orientation = _orientation(image)
        conversion, profile_remark = (None, None) if is_mask else to_srgb(image)
        pixels, alpha = _to_tensors(image, background, conversion)
        remarks = (
            profile_remark,
            METADATA if orientation is None or isinstance(source, BareFile) else None,
            FRAMES if _has_frames(image) else None,
        )
    turned = (_turned(pixels, orientation or 1), None if alpha is None else _turned(alpha, orientation or 1))
    return Picture(*turned, tuple(remark for remark in remarks if remark))


def _sources(path: Path) -> Iterator[Path | BareFile]:
    """The file; then, as its pixels may be intact behind metadata that the decoder refuses, the file without those."""
    yield path
    with contextlib.suppress(OSError):
        yield from without_metadata(path.read_bytes())


def _check_values(name: str, image: Image.Image) -> None:
    """Refuse numbers whose white is unknown; they would be trained on as black or white."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillows read 16-bit PNGs as I
        raise InputError(f"{name} holds numbers of 32 bits, whose white is unknown: save it with 8 or 16 bits.")


def _orientation(image: Image.Image) -> int | None:
    """The camera's orientation, 1 to 8 as in EXIF; None if the metadata cannot be read."""
    with contextlib.suppress(Exception):  # broken EXIF raises nearly anything
        value = image.getexif().get(0x0112, 1)
        return value if value in range(1, 9) else 1
    return None


def _turned(picture: Tensor, orientation: int) -> Tensor:
    """(C, H, W) made upright: mirrored, then rotated clockwise, as the EXIF orientation says."""
    if orientation in (2, 4, 5, 7):
        picture = picture.flip(-1)
    quarters = {3: 2, 4: 2, 5: 3, 6: 1, 7: 1, 8: 3}.get(orientation, 0)
    return picture.rot90(-quarters, (-2, -1)).contiguous() if quarters else picture


def _has_frames(image: Image.Image) -> bool:
    """Whether there is more than one frame; a phone's second picture (MPO) does not count. Reads only the second."""
    with contextlib.suppress(Exception):  # the second frame may be broken
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return True


def _to_tensors(image: Image.Image, background: Color, conversion: ToSrgb | None) -> tuple[Tensor, Tensor | None]:
    """Uint8 (3, H, W), and the alpha float32 (1, H, W) if there is any; converted in strips."""
    width, height = image.size
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    pixels = torch.empty(3, height, width, dtype=torch.uint8)
    alpha = torch.empty(1, height, width) if has_alpha else None
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        colours, opacity = _to_rgb(image.crop((0, top, width, bottom)), background, conversion)
        pixels[:, top:bottom] = torch.from_numpy(np.array(colours)).permute(2, 0, 1)  # HWC -> CHW
        if alpha is not None and opacity is not None:
            alpha[0, top:bottom] = torch.from_numpy(_unit(opacity))
    return pixels, alpha


def _to_rgb(strip: Image.Image, background: Color, conversion: ToSrgb | None) -> tuple[Image.Image, Image.Image | None]:
    """The strip in sRGB over the background, and its alpha channel."""
    if strip.mode.startswith(("I", "F")):
        strip = _to_eight_bits(strip)
    if "A" not in strip.getbands() and "transparency" not in strip.info:
        return _converted(strip, conversion), None
    alpha = strip.convert("RGBA").getchannel("A")
    picture = strip.convert("RGBA") if conversion is None else _converted(strip, conversion)
    picture.putalpha(alpha)
    composed = Image.alpha_composite(Image.new("RGBA", strip.size, (*background, 255)), picture)
    return composed.convert("RGB"), alpha


def _converted(strip: Image.Image, conversion: ToSrgb | None) -> Image.Image:
    return strip.convert("RGB") if conversion is None else conversion.apply(strip.convert(conversion.mode))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, with an alpha channel if one of its values is transparent.

    Pillow's own conversion would clip everything above 255 to white, and lose track of the transparent value.
    """
    values = np.asarray(image)
    grey = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _unit(channel: Image.Image) -> np.ndarray:
    return np.array(channel, dtype=np.float32) / 255

"""Pictures, captions and loss masks as the trainer takes them in: from a folder, or from a host's tensors.

In: which files are pictures, masks and captions, what is refused and how, and the set's digest. Not in:
decoding (`pictures`), sizes (`buckets`), what a caption means (`conditioning`), latents (`latent_bank`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from .errors import InputError
from .paths import expanded
from .pictures import Color, fit_mask, parse_color, read_mask, read_picture
from .tensor_pictures import to_mask, to_pixels, unbatch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNREAD_SUFFIXES = (
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
)  # pictures, but not read
MASK_ENDING = "-mask"
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainImage:
    """One picture with what belongs to it."""

    name: str  # file name, for messages
    pixels: Tensor  # uint8 (3, H, W), upright, alpha composed
    caption: str | None  # as the user wrote it, on one line; None: the template
    mask: Tensor | None  # float32 (1, H, W) in [0, 1]: the loss's weight per pixel; None: all 1


@dataclass(frozen=True)
class ImageSet:
    """The pictures of one subject, in a fixed order (a picture's random draws depend on its place)."""

    images: list[TrainImage]
    digest: str  # sha256 over pixels, captions and masks in order; file and folder names do not count
    notes: list[str] = field(default_factory=list)  # sentences to show once

    def repeats(self) -> list[str]:
        """A sentence for each picture that is there more than once: it counts as often, and is most often left over."""
        alike: dict[bytes, list[str]] = {}
        for image in self.images:
            content = f"{tuple(image.pixels.shape)}".encode() + image.pixels.numpy().tobytes()
            alike.setdefault(hashlib.sha256(content).digest(), []).append(image.name)
        return [
            f"{', '.join(names[:-1])} and {names[-1]} are the same picture, which counts {len(names)} times: leave "
            "one if that is not meant."
            for names in alike.values()
            if len(names) > 1
        ]

    @classmethod
    def from_tensors(
        cls,
        images: Sequence[Tensor] | Tensor,
        captions: Sequence[str | None] | str | None = None,
        masks: Sequence[Tensor] | Tensor | None = None,
        background: str = "white",
        *,
        alpha_masks: bool = False,
    ) -> ImageSet:
        """A host's layout: channels last, floats.

        Args:
            images: (N, H, W, C), or a list of (H, W, C) or (N, H, W, C), of any sizes; float in [0, 1]; C is
                1, 3 or 4, the fourth being alpha.
            captions: one per picture, or one string with a line per picture; an empty one means the template.
            masks: loss weights in [0, 1], (N, H, W) or a list of (H, W), one per picture.
            background: colour name or #rrggbb behind transparent parts.
            alpha_masks: a fourth channel is the loss mask of pictures without one in `masks`.

        Raises:
            InputError: naming the picture (`picture 1` is the first) that cannot be used.
        """
        color = parse_color(background)
        pictures = unbatch(images, 3)
        if not pictures:
            raise InputError("There are no images: give at least one picture of the subject.")
        lines = _one_each(_caption_lines(captions, len(pictures)), len(pictures), "captions")
        weights = _one_each(None if masks is None else unbatch(masks, 2), len(pictures), "masks")
        found = [
            _from_tensor(f"picture {place}", picture, line, weight, color, alpha_masks)
            for place, (picture, line, weight) in enumerate(zip(pictures, lines, weights, strict=True), start=1)
        ]
        return cls(found, _digest(found))


def load_images(
    folder: str | Path,
    *,
    background: str = "white",
    alpha_masks: bool = False,
    skip_bad_images: bool = False,
) -> ImageSet:
    """The png, jpg and webp pictures of a folder, by name, with `X.txt` captions and `X-mask.png` loss masks.

    Args:
        folder: not searched deeper; hidden files are left alone.
        background: colour name or #rrggbb behind transparent parts.
        alpha_masks: a picture's alpha channel is its loss mask, where no mask file says otherwise.
        skip_bad_images: leave unreadable pictures out, with a note, rather than refuse the folder.

    Raises:
        InputError: no such folder, no pictures in it, or a picture, mask or caption that cannot be used, by
            name.
    """
    color, folder = parse_color(background), expanded(folder, "The image folder")
    files = _sort_files(folder)
    images: list[TrainImage] = []
    for path in files.pictures:
        mask_path = files.masks.get(path.stem)
        try:
            pixels, alpha = read_picture(path, color)
            mask = read_mask(mask_path) if mask_path else None
        except InputError as error:
            if not skip_bad_images:
                raise
            files.notes.append(f"Left out: {str(error).rpartition(': ')[0]}.")
            continue
        mask_name = mask_path.name if mask_path else f"the alpha channel of {path.name}"
        mask = alpha if mask is None and alpha_masks else mask
        images.append(_train_image(path.name, pixels, _caption_beside(path, files.captions), mask, mask_name))
    if not images:
        raise InputError(
            " ".join([*files.notes, f"There are no usable pictures in {folder}: put png, jpg or webp files there."])
        )
    if alpha_masks and all(image.mask is None for image in images):
        files.notes.append("Alpha masks were asked for, but no picture has transparent parts: there are no loss masks.")
    return ImageSet(images, _digest(images), files.notes)


@dataclass
class _Files:
    """A folder's files by what they are; masks and captions by the stem of their picture."""

    pictures: list[Path] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _sort_files(folder: Path) -> _Files:
    files = _Files()
    for path in _list(folder):
        suffix = path.suffix.lower()
        if suffix == ".txt":
            files.captions[path.stem] = path
        elif suffix in UNREAD_SUFFIXES:
            files.notes.append(f"{path.name} is left out: convert it to png or jpg.")
        elif suffix in SUFFIXES and path.stem.lower().endswith(MASK_ENDING):
            files.masks[path.stem[: -len(MASK_ENDING)]] = path
        elif suffix in SUFFIXES:
            files.pictures.append(path)
    stems = {path.stem for path in files.pictures}
    for stem, path in files.masks.items():
        if stem not in stems:
            files.notes.append(
                f"{path.name} is a loss mask by its name, but there is no picture {stem}: rename one of them."
            )
    for stem, path in files.captions.items():
        if stem not in stems:
            files.notes.append(f"{path.name} belongs to no picture: give it the name of the picture it describes.")
    return files


def _list(folder: Path) -> list[Path]:
    """The folder's visible files, by name: the same order on every system."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"The image folder {folder} {what}: give a folder with pictures of the subject.")
    try:
        entries = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"The image folder {folder} cannot be read: {error.strerror}.") from error
    return sorted(entries, key=lambda path: path.name)


def _caption_beside(picture: Path, captions: dict[str, Path]) -> str | None:
    """The caption on one line; None without a file or with an empty one."""
    path = captions.get(picture.stem)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): make it readable or remove it.") from error
    return _tidy(text)


def _tidy(caption: str | None) -> str | None:
    return " ".join((caption or "").split()) or None


def _train_image(name: str, pixels: Tensor, caption: str | None, mask: Tensor | None, mask_name: str) -> TrainImage:
    if mask is not None:
        mask = fit_mask(mask, (pixels.shape[-2], pixels.shape[-1]), mask_name, name)
    return TrainImage(name, pixels, caption, mask)


def _from_tensor(
    name: str, picture: Tensor, caption: str | None, mask: Tensor | None, color: Color, alpha_masks: bool
) -> TrainImage:
    pixels, alpha = to_pixels(name, picture, color)
    if mask is not None:
        mask = to_mask(f"the mask of {name}", mask)
    mask = alpha if mask is None and alpha_masks else mask
    return _train_image(name, pixels, _tidy(caption), mask, f"the mask of {name}")


def _caption_lines(captions: Sequence[str | None] | str | None, count: int) -> list[str | None] | None:
    """One string holds a line per picture; blank lines at its end do not count beyond the pictures."""
    if captions is None or not isinstance(captions, str):
        return None if captions is None else list(captions)
    if not captions.strip():
        return None
    lines: list[str | None] = list(captions.replace("\r\n", "\n").split("\n"))
    while len(lines) > count and not (lines[-1] or "").strip():
        lines.pop()
    return lines


def _one_each(values: list[_T] | None, count: int, what: str) -> list[_T] | list[None]:
    if values is None:
        return [None] * count
    if len(values) != count:
        raise InputError(f"There are {len(values)} {what} for {count} images: give one per image, or none.")
    return values


def _digest(images: Sequence[TrainImage]) -> str:
    """Sha256 in hex. Every part is led by its length, so that no two sets read as the same bytes."""
    digest = hashlib.sha256()
    for image in images:
        caption = (image.caption or "").encode()
        digest.update(f"image {tuple(image.pixels.shape)} {len(caption)} {image.mask is not None};".encode())
        digest.update(image.pixels.numpy().tobytes())
        digest.update(caption)
        if image.mask is not None:
            digest.update(image.mask.numpy().tobytes())
    return digest.hexdigest()

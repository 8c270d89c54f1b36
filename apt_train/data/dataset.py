"""Pictures, captions and loss masks as the trainer receives them: from a folder, or from a host's tensors.

In: one picture with its caption and mask, what is refused and how, the set's digest. Not in: which file is what
(`folder_files`), decoding (`pictures`), sizes (`buckets`), what a caption means (`text.captions`), latents
(`latent_bank`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..disk.tensor_writer import raw_bytes
from ..errors import InputError
from ..paths import expanded
from ..settings_field import LONGEST_TEXT
from ..torch_defaults import torch_defaults
from ..wording import counted, listed, printable
from .caption_files import on_one_line, read_caption
from .folder_files import PictureFiles, sort_folder
from .pictures import TRANSPARENT, Color, Picture, fit_mask, parse_color, read_mask, read_picture
from .tensor_pictures import to_mask, to_pixels, unbatch

AtPicture = Callable[[int, int], object]  # (pictures done, all pictures)
_SHOWN = 5  # sentences about equal pictures, or skipped ones; the rest are only counted


@dataclass(frozen=True)
class StoredPicture:
    """Where a picture and its loss mask are stored, and how to read them."""

    path: Path
    mask_path: Path | None
    background: Color
    alpha_mask: bool

    def read(self) -> tuple[Picture, Tensor | None]:
        """The picture, and its mask as stored. InputError: one of them cannot be read."""
        picture = read_picture(self.path, self.background)
        return picture, read_mask(self.mask_path) if self.mask_path else picture.alpha if self.alpha_mask else None

    def fitted(self, picture: Picture, mask: Tensor | None) -> Tensor | None:
        """The mask at its picture's size. InputError: it has another shape, or is entirely black."""
        name = printable(self.path.name)
        mask_name = printable(self.mask_path.name) if self.mask_path else f"The alpha channel of {name}"
        return fit_mask(mask, picture.pixels, mask_name, name)


class TrainImage:
    """One picture with its caption and mask. Stored pictures are read again on each access, not kept in memory."""

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        caption: str | None,
        mask: Tensor | None,
        *,
        stored: StoredPicture | None = None,
    ) -> None:
        """
        Args:
            name: file name, for messages.
            pixels: uint8 (3, H, W), upright, composited over the background.
            caption: the user's text on one line; None: the template.
            mask: float32 (1, H, W) in [0, 1], the loss weight per pixel; None: all 1.
            stored: where to read `pixels` and `mask` again; None: keep them in memory.
        """
        self.name, self.caption = name, caption
        self.size: tuple[int, int] = (int(pixels.shape[-2]), int(pixels.shape[-1]))  # height, width
        self.has_mask = mask is not None
        self._stored = stored
        self._content = _content(pixels, mask) if stored else None
        self._held = None if stored else (pixels, mask)

    @property
    def pixels(self) -> Tensor:
        return self.read()[0]

    @property
    def mask(self) -> Tensor | None:
        return self.read()[1]

    @property
    def content(self) -> tuple[bytes, bytes]:
        """Digests of pixels and mask."""
        return self._content or _content(*self.read())

    def read(self) -> tuple[Tensor, Tensor | None]:
        """Pixels and mask together. InputError: their files have changed."""
        if self._held is not None:
            return self._held
        assert self._stored is not None
        picture, mask = self._stored.read()
        mask = self._stored.fitted(picture, mask)
        if _content(picture.pixels, mask) != self._content:
            raise InputError(
                f"{self.name} or its mask has changed while it was in use: start again with what is there."
            )
        return picture.pixels, mask


@dataclass(frozen=True)
class ImageSet:
    """The pictures of one subject, in a fixed order: a picture's random draws depend on its index."""

    images: list[TrainImage]
    digest: str  # sha256 over pixels, captions and masks in order; file and folder names do not count
    notes: list[str] = field(default_factory=list[str])  # sentences to show once

    def repeats(self) -> list[str]:
        """A sentence for each picture that appears more than once: it counts as often, usually by mistake."""
        alike: dict[bytes, list[str]] = {}
        for image in self.images:
            alike.setdefault(image.content[0], []).append(image.name)
        repeated = [names for names in alike.values() if len(names) > 1]
        told = [
            f"{listed(names, 3)} are the same picture, which counts {len(names)} times: keep one unless that is meant."
            for names in repeated[:_SHOWN]
        ]
        if more := len(repeated) - len(told):
            told.append(f"{counted(more, 'more picture')} {'is' if more == 1 else 'are'} repeated, too.")
        return told

    @classmethod
    @torch_defaults()
    def from_tensors(
        cls,
        images: Sequence[Tensor] | Tensor,
        captions: Sequence[str | None] | str | None = None,
        masks: Sequence[Tensor] | Tensor | None = None,
        background: str = "white",
        *,
        alpha_masks: bool = False,
    ) -> ImageSet:
        """From a host's layout: float tensors, channels last.

        Args:
            images: (N, H, W, C), or a list of (H, W, C) or (N, H, W, C), of any sizes; float in [0, 1]; C is 1, 3 or
                4, the fourth being alpha.
            captions: one per picture, or a string with one line per picture. A single caption applies to all
                pictures, which is noted; an empty one means the template.
            masks: loss weights in [0, 1], (N, H, W) or a list of (H, W), one per picture.
            background: colour name or #rrggbb behind transparent parts.
            alpha_masks: use a fourth channel as the loss mask of pictures without one in `masks`.

        Raises:
            InputError: naming the picture that cannot be used (`picture 1` is the first).
        """
        color = parse_color(background)
        pictures = unbatch(images, 3)
        if not pictures:
            raise InputError("There are no images: give at least one picture of the subject.")
        lines, notes = _lines(captions, len(pictures))
        weights = [None] * len(pictures) if masks is None else unbatch(masks, 2)
        if len(weights) != len(pictures):
            raise InputError(
                f"The number of masks is {len(weights)}, of images {len(pictures)}: give one per image, or none."
            )
        found = [
            _from_tensor(f"picture {place}", picture, line, weight, color, alpha_masks)
            for place, (picture, line, weight) in enumerate(zip(pictures, lines, weights, strict=True), start=1)
        ]
        digest = hashlib.sha256()
        for image in found:
            for part in _parts(image.pixels, image.caption, image.mask):
                digest.update(part)
        return cls(found, digest.hexdigest(), notes)

    def to_tensors(self) -> tuple[list[Tensor], list[str], list[Tensor]]:
        """Pictures, captions and masks from which `from_tensors` makes this same set again.

        Pictures (1, H, W, 3), masks (1, H, W), float in [0, 1]. A missing caption becomes empty, a missing mask
        entirely white: one tensor for all of a size, as a camera's pictures take gigabytes. InputError: a file has
        changed.
        """
        pictures: list[Tensor] = []
        masks: list[Tensor] = []
        white: dict[tuple[int, int], Tensor] = {}
        for image in self.images:
            pixels, mask = image.read()
            pictures.append((pixels.permute(1, 2, 0).float() / 255)[None])
            masks.append(white.setdefault(image.size, torch.ones(1, *image.size)) if mask is None else mask)
        return pictures, [image.caption or "" for image in self.images], masks


@torch_defaults()
def load_images(
    folder: str | Path,
    *,
    background: str = "white",
    alpha_masks: bool = False,
    skip_bad_images: bool = False,
    at_picture: AtPicture | None = None,
) -> ImageSet:
    """The pictures of a folder, sorted by name, with their captions and loss masks.

    Formats: png, jpg, webp, bmp, gif, tiff, tga and, with a newer Pillow, avif; captions `X.txt` or `X.caption`; loss
    masks `X-mask.png`, `X-masklabel.png` or `X_mask.png`. Any other file is listed in the set's notes. The pictures
    stay on disk: each is read here once, and again when it is prepared.

    Args:
        folder: sub-folders are not searched, hidden files are ignored.
        background: colour name or #rrggbb behind transparent parts.
        alpha_masks: use a picture's alpha channel as its loss mask, unless there is a mask file.
        skip_bad_images: leave unreadable pictures out, with a note, instead of refusing the folder.
        at_picture: called before each picture with the number read and the total; if it raises, reading ends.

    Raises:
        InputError: no such folder, no pictures in it, or a picture, mask or caption that cannot be used; it is named.
    """
    color, place = parse_color(background), expanded(folder, "The image folder")
    files = sort_folder(place)
    reading = _Reading(color, alpha_masks, skip_bad_images)
    for done, picture in enumerate(files.pictures):
        if at_picture is not None:
            at_picture(done, len(files.pictures))
        reading.add(picture)
    notes = [*files.notes, *reading.notes()]
    if not reading.images:
        raise InputError(" ".join([*notes, _nothing_in(place, files.with_pictures)]))
    if alpha_masks and not any(image.has_mask for image in reading.images):
        notes.append("Alpha masks were asked for, but no picture has transparent parts: there are no loss masks.")
    return ImageSet(reading.images, reading.digest.hexdigest(), notes)


class _Reading:
    """Collects a folder's pictures as they are read, one after another."""

    def __init__(self, background: Color, alpha_masks: bool, skip_bad_images: bool) -> None:
        self._background, self._alpha_masks, self._skips = background, alpha_masks, skip_bad_images
        self._left_out: list[str] = []
        self._ambiguous: list[str] = []  # caption files in use although another one disagrees
        self._remarks: dict[str, list[str]] = {}  # names of pictures by remark
        self.images: list[TrainImage] = []
        self.digest = hashlib.sha256()

    def add(self, files: PictureFiles) -> None:
        """Read a picture and its side files. InputError: it cannot be used, and must not be skipped."""
        stored = StoredPicture(files.path, files.mask, self._background, self._alpha_masks)
        try:
            picture, mask = stored.read()
        except InputError as error:
            if not self._skips:
                raise
            return self._left_out.append(str(error).rpartition(": ")[0])
        mask = stored.fitted(picture, mask)
        caption, counts = read_caption(files.captions)
        if counts:
            self._ambiguous.append(printable(counts.name))
        name = printable(files.path.name)
        filled = mask is None and picture.alpha is not None and float(picture.alpha.min()) < 1
        for remark in (*picture.remarks, *([TRANSPARENT] if filled else [])):
            self._remarks.setdefault(remark, []).append(name)
        self.images.append(TrainImage(name, picture.pixels, caption, mask, stored=stored))
        for part in _parts(picture.pixels, caption, mask):
            self.digest.update(part)

    def notes(self) -> list[str]:
        """Notes for the user about the pictures read."""
        notes = [f"Left out: {text}." for text in self._left_out[:_SHOWN]]
        if len(self._left_out) > _SHOWN:
            notes.append(f"Left out likewise: {len(self._left_out) - _SHOWN} more.")
        if self._ambiguous:
            count = "counts" if len(self._ambiguous) == 1 else "count"
            notes.append(f"{listed(self._ambiguous)} {count}. Another caption file of the picture says something else.")
        return [*notes, *(remark.format(names=listed(names)) for remark, names in self._remarks.items())]


def _nothing_in(folder: Path, with_pictures: list[Path]) -> str:
    shown = printable(str(folder))
    if not with_pictures:
        return f"There are no usable pictures in {shown}: put png, jpg or webp files there."
    names = listed([printable(str(path)) for path in with_pictures])
    return f"There are no usable pictures in {shown} itself: give the folder that holds them, {names}."


def _from_tensor(
    name: str, picture: Tensor, caption: str | None, mask: Tensor | None, color: Color, alpha_masks: bool
) -> TrainImage:
    pixels, alpha = to_pixels(name, picture, color)
    if mask is not None:
        mask = to_mask(f"the mask of {name}", mask)
    mask = alpha if mask is None and alpha_masks else mask
    return TrainImage(name, pixels, on_one_line(caption), fit_mask(mask, pixels, f"the mask of {name}", name))


def _lines(captions: Sequence[str | None] | str | None, count: int) -> tuple[list[str | None], list[str]]:
    """One caption per picture, and a note if a single one applies to all."""
    lines = _caption_lines(captions, count)
    for line in lines:
        _check_text(line)
    if len(lines) == 1 < count:
        note = f"The only caption counts for all {count} pictures: write a line per picture where they differ."
        return lines * count, [note] if on_one_line(lines[0]) else []
    if len(lines) != count:
        raise InputError(
            f"The number of captions is {len(lines)}, of images {count}: give one per image, one for all, or none to "
            "use the caption template."
        )
    return lines, []


def _check_text(caption: object) -> None:
    """InputError unless it is a string that can be encoded: lone surrogates cannot."""
    if caption is None:
        return
    if not isinstance(caption, str):
        raise InputError(f"A caption is of the type {type(caption).__name__}: give one string per image.")
    if len(caption) > LONGEST_TEXT:
        raise InputError(f"A caption has {len(caption)} letters, too many: write some sentences.")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise InputError(f"The caption {caption!a} contains half a character: type it again.") from None


def _caption_lines(captions: Sequence[str | None] | str | None, count: int) -> list[str | None]:
    """A string holds one line per picture; trailing blank lines count only if they complete the number."""
    if captions is None or isinstance(captions, str) and not captions.strip():
        return [None]
    if not isinstance(captions, str):
        return list(captions) if hasattr(captions, "__iter__") else [cast("str", captions)]
    lines: list[str | None] = list(captions.replace("\r\n", "\n").split("\n"))
    while 1 < len(lines) != count and not (lines[-1] or "").strip():
        lines.pop()
    return lines


def _content(pixels: Tensor, mask: Tensor | None) -> tuple[bytes, bytes]:
    """Digests of pixels and mask; empty for a missing mask."""
    shape = f"{tuple(pixels.shape)}".encode()
    of_pixels = hashlib.sha256(shape)
    of_pixels.update(raw_bytes(pixels))
    return of_pixels.digest(), b"" if mask is None else hashlib.sha256(raw_bytes(mask)).digest()


def _parts(pixels: Tensor, caption: str | None, mask: Tensor | None) -> Iterator[bytes | memoryview]:
    """A picture's part of the set's digest. Lengths come first, so that different sets never hash the same bytes."""
    text = (caption or "").encode()
    yield f"image {tuple(pixels.shape)} {len(text)} {mask is not None};".encode()
    yield raw_bytes(pixels)
    yield text
    if mask is not None:
        yield raw_bytes(mask)

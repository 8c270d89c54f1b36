"""Converts colours from a picture's ICC profile to sRGB, which the models were trained on.

In: reading a profile, and telling whether it differs from sRGB. Not in: opening files, alpha (`pictures`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms, features

from .bare_picture import MAX_PROFILE

# {names} is filled in with the pictures' names.
UNREADABLE = "The colour profile of {names} cannot be used, so the numbers are taken as sRGB: save it as sRGB."
IGNORED = "This Pillow was built without LittleCMS, so the colour profile of {names} is ignored: save it as sRGB."

UNPROFILED = (
    "The colours of {names} are not sRGB and no profile says what they are, so they are taken as sRGB: save it as sRGB."
)

_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
# A PNG in sRGB has this gamma, and these chromaticities of white, red, green and blue as x and y.
_GAMMA, _CORNERS = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_EXIF, _INTEROP, _COLOUR_SPACE = 0x8769, 0xA005, 0xA001
# Profiles named sRGB differ from each other by rounding; Display P3 differs by 50.
_SAME = 2


@dataclass(frozen=True)
class ToSrgb:
    """The conversion from one profile's colours to sRGB."""

    mode: str  # L, RGB or CMYK: what `apply` takes
    transform: Any

    def apply(self, image: Image.Image) -> Image.Image:
        """Convert an 8-bit picture of `mode` to sRGB."""
        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None
        return converted


def to_srgb(image: Image.Image) -> tuple[ToSrgb | None, str | None]:
    """The conversion of the picture's colours to sRGB, None if they are sRGB; and a remark with `{names}`, if any.

    A profile is judged by its effect, not by its name. If no colour moves by more than rounding, the pixels are left
    exactly as they are.
    """
    profile = image.info.get("icc_profile", b"")
    if profile == b"":
        return None, UNPROFILED if _is_said_to_be_other(image) else None
    if not features.check("littlecms2"):
        return None, IGNORED
    try:
        conversion = _conversion(profile, image.mode)
        return (None if _is_identity(conversion) else conversion), None
    except Exception:  # LittleCMS raises nearly anything on a broken profile
        return None, UNREADABLE


def _is_said_to_be_other(image: Image.Image) -> bool:
    """Whether a PNG's own numbers contradict sRGB, or a camera was set to Adobe RGB."""
    gamma, corners = image.info.get("gamma", _GAMMA), image.info.get("chromaticity", _CORNERS)
    if image.format == "PNG" and "srgb" not in image.info:
        far = [abs(gamma / _GAMMA - 1) > 0.05, *(abs(a - b) > 0.01 for a, b in zip(corners, _CORNERS, strict=True))]
        if any(far):
            return True
    try:
        exif = image.getexif()
        return exif.get_ifd(_EXIF).get(_COLOUR_SPACE) == 2 or exif.get_ifd(_INTEROP).get(1) == "R03"
    except Exception:  # broken EXIF raises nearly anything
        return False


def _conversion(profile: bytes | None, mode: str) -> ToSrgb:
    if profile is None or len(profile) > MAX_PROFILE:
        raise ValueError("no usable profile")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    core = cast("Any", source.profile)
    takes = _MODES[core.xcolor_space.strip()]
    # A grey picture may carry the RGB profile of the program that wrote it; CMYK fits only CMYK.
    if (takes == "CMYK") != (mode == "CMYK") or (takes == "L" and mode not in _GREYS):
        raise ValueError("a profile for another kind of picture")
    srgb = ImageCms.ImageCmsProfile(cast("Any", ImageCms.createProfile("sRGB")))
    return ToSrgb(takes, ImageCms.buildTransform(source, srgb, takes, "RGB"))


def _is_identity(conversion: ToSrgb) -> bool:
    if conversion.mode == "CMYK":
        return False
    levels = np.arange(256, dtype=np.uint8)
    few = levels[::17]  # 16 steps per side of the colour cube
    colours = np.stack(np.meshgrid(few, few, few), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(colours if conversion.mode == "RGB" else levels[None])
    before = np.asarray(probe.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(conversion.apply(probe)).astype(int) - before).max() <= _SAME)

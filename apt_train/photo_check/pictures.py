"""Findings about the pictures themselves: too few, blurred, enlarged, cropped, all in one place.

In: the thresholds, each with its source. Not in: the measurements (`look`), duplicates (`copies`), masks and captions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..data.buckets import NOTED_CROP, NOTED_SCALE
from ..wording import counted
from .copies import copy_findings
from .finding import Finding, about
from .look import Look

# All ours; `docs/check.md` says how many pictures they were tuned on.
FEW, MANY = 3, 30  # pictures, as in `docs/recipes.md`
ALIKE = 0.85  # similarity of surroundings: same place 0.94 or more, two of three random pictures below 0.73
ALIKE_IN_GREY = 0.985  # the same where both have one tint: three unrelated ones are above in 1 of 1000 draws
MOST = 0.8  # share of the pictures that must have the same background
BLURRED = 0.06  # `sharpness_of`: sharp 0.2 to 2 (1 in 100: 0.07), smoothed by 1.5 pixels 0.025


def picture_findings(looks: Sequence[Look], backgrounds: Sequence[int]) -> Iterator[Finding]:
    """Findings about the pictures. `backgrounds`: those with one background, if that is to be reported; else empty."""
    yield from _count(len(looks))
    plain = [i for i, look in enumerate(looks) if not look.views.any()]
    text = "One colour all over: {names}. There is no subject to learn from: leave it out."
    yield from about(looks, plain, "one colour", text, serious=True)
    yield from copy_findings(looks)
    text = (
        "The backgrounds of {names} look alike, and the captions do not name them. Such a background is learned as "
        "part of the subject: vary it, name it in every caption, or add masks."
    )
    yield from about(looks, backgrounds, "same background", text)
    yield from _blurred(looks)
    yield from _enlarged(looks)
    yield from _cropped(looks)


def one_background(looks: Sequence[Look]) -> list[int]:
    """The pictures whose surroundings share the same colours, if these are nearly all of them; otherwise none."""
    surroundings = np.stack([look.surroundings for look in looks])
    grey = np.array([look.one_tint for look in looks])
    least = np.where(grey & grey[:, None], ALIKE_IN_GREY, ALIKE)
    alike = cast("NDArray[np.bool_]", surroundings @ surroundings.T > least)
    group = cast("list[int]", alike[int(alike.sum(axis=1).argmax())].nonzero()[0].tolist())
    return group if len(group) >= max(FEW, math.ceil(MOST * len(looks))) else []


def _count(count: int) -> Iterator[Finding]:
    if count < FEW:
        yield Finding(
            "few pictures",
            f"The subject has only {counted(count, 'picture')}. Pose, light and background are then learned as part of "
            "it: add photos until there are 3 to 10.",
        )
    if count > MANY:
        yield Finding(
            "many pictures",
            f"There are {count} pictures, so training sees each of them rarely. Raise steps in proportion, or keep "
            "the 10 to 30 that differ most.",
        )


def _blurred(looks: Sequence[Look]) -> Iterator[Finding]:
    found = [i for i, look in enumerate(looks) if look.sharpness is not None and look.sharpness < BLURRED]
    text = "Blurred: {names}. The blur is learned as part of the subject: use sharper photos instead."
    return about(looks, found, "blurred", text)


def _enlarged(looks: Sequence[Look]) -> Iterator[Finding]:
    found = [i for i, look in enumerate(looks) if look.crop.scale > NOTED_SCALE]
    text = (
        "Enlarged to the training size: {names}. The missing detail is learned as softness: use larger originals, or a "
        "smaller resolution."
    )
    return about(looks, found, "enlarged", text, [f"{looks[i].crop.scale:.1f} times" for i in found])


def _cropped(looks: Sequence[Look]) -> Iterator[Finding]:
    """Skipped if a mask shows that no part of the subject is lost."""
    found = [i for i, look in enumerate(looks) if look.crop.lost > NOTED_CROP and look.mask is None]
    text = (
        "Cropped to the middle, as the shape is far from any training size: {names}. What lies outside is never "
        "learned: crop by hand around the subject."
    )
    return about(looks, found, "cropped", text, [f"loses {looks[i].crop.lost:.0%}" for i in found])

"""Pictures that show nearly the same: re-saved, relit, cropped a little otherwise, shot in a burst, or mirrored.

In: which pictures are alike, with the thresholds and their source. Not in: shrinking a picture (`look`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .finding import Finding, about
from .look import Floats, Look

# All ours; `docs/check.md` says what they were measured on.
NEAR = 0.7  # a whole and its best window: less is not worth a search
SAME = 0.94  # windows in their best position: copies 0.96 or more, different pictures below 0.7
APART = 0.09  # contrast that differs in any part: a burst 0.09 or less, a subject turned where it stood 0.10 or more
_PARTS = 4  # per side


def copy_findings(looks: Sequence[Look]) -> Iterator[Finding]:
    """Groups of pictures that are nearly the same, then those that mirror one of another group."""
    views = [look.views for look in looks]
    grouped = list(_groups(_alike(views, views)))
    for group in grouped:
        text = (
            "{names} look almost the same. What they share is learned more strongly than the rest, pose and background "
            "included: keep one of them."
        )
        yield from about(looks, group, "near-duplicate", text)
    mirror = _alike(views, [view[:, :, ::-1] for view in views])
    for group in grouped:  # its first stands for it
        mirror[group[1:]] = mirror[:, group[1:]] = False
    for group in _groups(mirror):
        text = (
            "{names} mirror each other. A mirrored copy shows nothing new, and swaps the subject's left and right: "
            "keep one of them."
        )
        yield from about(looks, group, "mirrored", text)


def _alike(views: Sequence[Floats], others: Sequence[Floats]) -> NDArray[np.bool_]:
    """Whether a picture of the first list shows the same as a later one of the second, (pictures, pictures)."""
    wholes = np.stack([view[:1] for view in others])[:, 0]
    near = cast("Floats", np.stack([_products(wholes, view).max(axis=1) for view in views]))
    alike = np.zeros(near.shape, dtype=bool)
    close = cast("NDArray[np.bool_]", (near > NEAR) | (near.T > NEAR))
    pairs = np.argwhere(np.triu(close, k=1))
    for one, other in cast("list[tuple[int, int]]", pairs.tolist()):
        alike[one, other] = _is_copy(views[one], others[other])
    return alike


def _is_copy(view: Floats, other: Floats) -> bool:
    """Whether some window of one is some window of the other, in every part."""
    matches = _products(view, other)
    if matches.max() <= SAME:
        return False
    best, its = divmod(int(matches.argmax()), len(other))
    side = view.shape[1] // _PARTS
    parts = np.stack([view[best], other[its]]).reshape(2, _PARTS, side, _PARTS, side, 3)
    parts = parts - parts.mean(axis=(2, 4), keepdims=True)
    contrast: Floats = (parts**2).mean(axis=0).sum(axis=(1, 3, 4))
    apart: Floats = ((parts[0] - parts[1]) ** 2 / 2).sum(axis=(1, 3, 4))
    return bool((apart <= APART * (contrast + contrast.mean())).all())


def _products(views: Floats, others: Floats) -> Floats:
    """How alike each view is to each other one, (views, others), from -1 to 1."""
    return cast("Floats", views.reshape(len(views), -1) @ others.reshape(len(others), -1).T)


def _groups(linked: NDArray[np.bool_]) -> Iterator[list[int]]:
    """Indices linked directly or through others; a single index is no group."""
    seen: set[int] = set()
    for start in range(len(linked)):
        group, waiting = set[int](), [start]
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                group.add(place)
                waiting += cast("list[int]", np.flatnonzero(linked[place] | linked[:, place]).tolist())
        if len(group) > 1:
            yield sorted(group)

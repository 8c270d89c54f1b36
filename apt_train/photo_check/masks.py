"""Findings about masks, and about what they reveal of the subject in its picture.

In: the thresholds, each with its source. Not in: the measurements (`look`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .finding import Finding, about
from .look import Look, MaskLook

# All ours.
TINY = 0.04  # share of the crop: 160 of the 4096 latents at 512 pixels
CUT = 0.1  # share of the subject
ON_EDGE = 0.15  # share of an edge that the subject covers; a paw or a handle touching it is fine
MOSTLY = 0.5  # a finding needs more than this share of masked pictures that cut the subject off
BORDER, HOLLOW = 0.75, 0.5  # of an inverted mask: least white share of the edges, most of the middle


def mask_findings(looks: Sequence[Look]) -> Iterator[Finding]:
    """Findings about the pictures with a mask."""
    inverted = _where(looks, lambda mask: is_inverted(mask.edges, mask.middle))
    text = (
        "Masks that look inverted: {names}. White covers the border and leaves the middle out, so the background would "
        "be learned in place of the subject: invert them."
    )
    yield from about(looks, inverted, "mask inverted?", text, serious=True)
    unclear = [i for i in _where(looks, lambda mask: fills_border(mask.edges)) if i not in inverted]
    text = (
        "White covers most of the border: {names}. Only what is white is learned: invert the mask if that is the "
        "background."
    )
    # What leaves out less than `TINY` of the crop leaves out a watermark rather than a subject.
    leaves_out = [i for i in unclear if (mask := looks[i].mask) and 1 - mask.area > TINY]
    yield from about(looks, leaves_out, "mask inverted?", text)
    upright = [i for i in _where(looks, lambda _: True) if i not in (*inverted, *unclear)]
    yield from _small(looks, upright)
    yield from _cut_by_crop(looks, upright)
    yield from _cut_by_edge(looks, upright)


def is_inverted(edges: Sequence[float], middle: float) -> bool:
    """Whether a mask is white at the edges and black in the middle, where most photographs have their subject."""
    return fills_border(edges) and middle < HOLLOW


def fills_border(edges: Sequence[float]) -> bool:
    """Whether a mask is white at most of the edges: then white is the background, or a subject that fills the picture.

    How much of such a subject is cut off says nothing.
    """
    return sum(edges) / len(edges) > BORDER


def _where(looks: Sequence[Look], applies: Callable[[MaskLook], bool]) -> list[int]:
    return [i for i, look in enumerate(looks) if look.mask is not None and applies(look.mask)]


def _small(looks: Sequence[Look], upright: list[int]) -> Iterator[Finding]:
    areas = {i: mask.area for i in upright if (mask := looks[i].mask) and mask.area < TINY and mask.cut <= CUT}
    text = (
        "The subject fills little of the picture: {names}. Its detail cannot be learned from so few pixels: crop "
        "closer around it."
    )
    return about(looks, list(areas), "subject small", text, [f"{area:.1%}" for area in areas.values()])


def _cut_by_crop(looks: Sequence[Look], upright: list[int]) -> Iterator[Finding]:
    cuts = {i: mask.cut for i in upright if (mask := looks[i].mask) and mask.cut > CUT}
    shares = [f"loses {cut:.0%}" for cut in cuts.values()]
    text = (
        "The crop to the training size cuts the subject: {names}. That part is never learned: crop by hand "
        "around the subject."
    )
    return about(looks, list(cuts), "subject cropped", text, shares, serious=True)


def _cut_by_edge(looks: Sequence[Look], upright: list[int]) -> Iterator[Finding]:
    """Only if most pictures do it: one close-up among pictures of the whole subject is welcome."""
    found = [i for i in upright if (mask := looks[i].mask) and max(mask.edges) > ON_EDGE]
    text = (
        "The subject runs out of the picture: {names}. It will be cut off in results, too: add photos that show all of "
        "it."
    )
    return about(looks, found if len(found) > MOSTLY * len(upright) else [], "subject cut off", text)

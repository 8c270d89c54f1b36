"""One thing to know about a set of pictures before training on it.

Not in: what is looked for (`pictures`, `masks`, `captions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..wording import listed
from .look import Look

MOST_NAMES = 5


@dataclass(frozen=True)
class Finding:
    """What was found, how it affects the result, and what to do."""

    kind: str  # two or three words, for a label
    text: str  # one or two sentences
    pictures: tuple[int, ...] = ()  # their indices; empty: the set as a whole
    serious: bool = False  # it spoils the result, or training refuses it


def named(looks: Sequence[Look], places: Sequence[int], details: Sequence[str] = ()) -> str:
    """The pictures at these indices, each with its detail: `a.png 40%, b.png 12% and 3 others`."""
    names = [looks[place].name for place in places]
    said = [f"{name} {detail}" for name, detail in zip(names, details, strict=True)] if details else names
    return listed(said, MOST_NAMES)

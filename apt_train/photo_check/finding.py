"""One thing to know about a set of pictures before training on it.

Not in: what is looked for (`pictures`, `masks`, `captions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..wording import listed

MOST_NAMES = 5


@dataclass(frozen=True)
class Finding:
    """What was found, how it affects the result, and what to do."""

    kind: str  # two or three words, for a label
    text: str  # one or two sentences
    pictures: tuple[int, ...] = ()  # their indices; empty: the set as a whole
    serious: bool = False  # it spoils the result, or training refuses it


def named(names: Sequence[str], places: Sequence[int], details: Sequence[str] = ()) -> str:
    """The pictures at these indices, each with its detail: `a.png 40%, b.png 12% and 3 others`."""
    said = [f"{names[place]} {detail}" for place, detail in zip(places, details, strict=True)] if details else None
    return listed(said or [names[place] for place in places], MOST_NAMES)

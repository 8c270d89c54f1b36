"""One thing to know about a set of pictures before training on it.

Not in: what is looked for (`pictures`, `masks`, `captions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def about(
    looks: Sequence[Look], found: Sequence[int], kind: str, text: str, shares: Sequence[str] = (), serious: bool = False
) -> Iterator[Finding]:
    """The finding about the pictures at these indices, if there are any.

    `{names}` in the text becomes their names, each with its share: `a.png 40%, b.png 12% and 3 others`.
    """
    names = [looks[place].name for place in found]
    said = [f"{name} {share}" for name, share in zip(names, shares, strict=True)] if shares else names
    if found:
        yield Finding(kind, text.replace("{names}", listed(said, MOST_NAMES)), tuple(found), serious)

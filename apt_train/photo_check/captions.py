"""What captions leave unsaid, and training therefore learns as part of the subject.

In: the captions' words only; no model reads them. Not in: how training uses a caption (`text.captions`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..names import EMBEDDING
from ..text.captions import SUBJECT, mark_embedding, marked_caption
from .finding import Finding, about
from .look import Look

# Words that say nothing about what else is in a picture.
_EMPTY = frozenset(
    """a an the this that my our of in on at by with and or is it its as for to from very one some photo photograph
    photography picture image shot snapshot portrait closeup close up close-up view rendering render drawing painting
    illustration sketch depiction cropped good bad nice clean dark bright cool weird rendition showing""".split()
)  # the last ones come from the usual templates of DreamBooth and textual inversion

NOT_ENGLISH = (
    "The class word is not in English. The untouched model draws something else for it, so training starts far from "
    "the subject: give the English word."
)


@dataclass(frozen=True)
class Called:
    """What captions may call the subject. `class_word`: empty if unknown; then only the name can be searched for."""

    name: str
    class_word: str


def described_words(caption: str | None, called: Called | None) -> set[str]:
    """The caption's words that are neither the subject nor filler."""
    text = mark_embedding(caption or "", name=called.name) if called else caption or ""
    subject = {word.lower() for word in (f"{called.name} {called.class_word}".split() if called else ())}
    words = re.findall(r"[\w'-]+", re.sub(rf"\{{\w+\}}|{EMBEDDING}\S+", " ", text).lower())
    return {word for word in words if word not in _EMPTY | subject}


def names_subject(look: Look, called: Called | None) -> bool | None:
    """Whether training accepts the caption; None: unknown without a class word."""
    if not look.caption or SUBJECT in look.caption:
        return True
    if called is None:
        return None
    if marked_caption(look.caption, name=called.name, class_word=called.class_word) is not None:
        return True
    return False if called.class_word else None


def named_by_all(looks: Sequence[Look], places: Sequence[int], called: Called | None) -> set[str]:
    """The words that the captions of all these pictures share, besides the subject."""
    return set[str].intersection(*(described_words(looks[place].caption, called) for place in places))


def is_in_other_letters(text: str) -> bool:
    """Whether most of its letters are not Latin, as the words are that the text encoders of SD1.5 and SDXL know."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * latin < len(letters)


def caption_findings(looks: Sequence[Look], called: Called | None, backgrounds: Sequence[int]) -> Iterator[Finding]:
    """Findings about captions. `backgrounds`: pictures with a common background. `called`: the names, if known."""
    refused = [i for i, look in enumerate(looks) if names_subject(look, called) is False]
    text = (
        "Captions that do not name the subject: {names}. Training refuses them: write {subject} or the class word "
        "where the subject belongs, or leave them empty."
    )
    yield from about(looks, refused, "subject not named", text, serious=True)
    yield from _not_english(looks, called)
    if not any(look.caption for look in looks):
        return
    yield from _missing(looks)
    yield from _bare(looks, called)
    yield from _identical(looks, called, backgrounds)


def _not_english(looks: Sequence[Look], called: Called | None) -> Iterator[Finding]:
    if called is not None and is_in_other_letters(called.class_word):
        yield Finding("not in English", NOT_ENGLISH, serious=True)
    found = [i for i, look in enumerate(looks) if is_in_other_letters(" ".join(described_words(look.caption, called)))]
    text = (
        "Captions that are not in English: {names}. The text encoders of SD1.5 and SDXL do not know these words, so "
        "they explain nothing: translate them."
    )
    yield from about(looks, found, "not in English", text)


def _bare(looks: Sequence[Look], called: Called | None) -> Iterator[Finding]:
    bare = [i for i, look in enumerate(looks) if look.caption and not described_words(look.caption, called)]
    text = (
        "Captions that name the subject alone: {names}. All else in the picture is learned with it: name the place, "
        "the light and whatever else is there."
    )
    return about(looks, bare, "background not named", text)


def _missing(looks: Sequence[Look]) -> Iterator[Finding]:
    missing = [i for i, look in enumerate(looks) if not look.caption]
    text = (
        "No caption, though other pictures have one: {names}. The caption template names no background, so that is "
        "learned with the subject: write one here, too."
    )
    return about(looks, missing, "no caption", text)


def _identical(looks: Sequence[Look], called: Called | None, backgrounds: Sequence[int]) -> Iterator[Finding]:
    """Skipped for a common background, which one caption may well describe."""
    captions = {" ".join((look.caption or "").lower().split()) for look in looks}
    same = len(looks) > 1 and len(captions) == 1 and described_words(looks[0].caption, called)
    if same and not backgrounds:
        yield Finding(
            "same caption",
            "All captions are the same, though the pictures differ. What differs is then learned with the subject: "
            "describe each picture by itself.",
        )

"""What the captions leave unsaid, and so is learned as part of the subject.

In: the words of captions alone; no model reads them. Not in: what training makes of a caption (`text.captions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..config import TrainConfig
from ..errors import InputError
from ..text.captions import SUBJECT, caption_for, mark_embedding
from .finding import Finding, named
from .look import Look

# Words that say nothing of what else is in a picture.
_EMPTY = frozenset(
    """a an the this that my our of in on at by with and or is it its as for to from very one some photo photograph
    photography picture image shot snapshot portrait closeup close up close-up view rendering render drawing painting
    illustration sketch depiction cropped good bad nice clean dark bright cool weird rendition showing""".split()
)  # the last are of DreamBooth's and textual inversion's usual templates


def said_of_the_rest(caption: str | None, config: TrainConfig | None) -> set[str]:
    """The caption's words that are neither the subject nor a filling."""
    text = mark_embedding(caption or "", name=config.name) if config else caption or ""
    subject = {word.lower() for word in (f"{config.name} {config.class_word}".split() if config else ())}
    words = re.findall(r"[\w'-]+", re.sub(r"\{\w+\}|embedding:\S+", " ", text).lower())
    return {word for word in words if word not in _EMPTY | subject}


def names_subject(look: Look, config: TrainConfig | None) -> bool | None:
    """Whether training takes the caption; None: without a class word nobody knows."""
    if not look.caption or SUBJECT in look.caption or "embedding:" in look.caption:
        return True
    if config is None:
        return None
    try:
        caption_for(look.caption, look.name, template=SUBJECT, name=config.name, class_word=config.class_word)
    except InputError:
        return False
    return True


def named_by_all(looks: Sequence[Look], places: Sequence[int], config: TrainConfig | None) -> set[str]:
    """The words that the captions of all these pictures have beside the subject."""
    return set[str].intersection(*(said_of_the_rest(looks[place].caption, config) for place in places))


def caption_findings(
    looks: Sequence[Look], config: TrainConfig | None, backgrounds: Sequence[int]
) -> Iterator[Finding]:
    """`backgrounds`: the pictures in front of one background. `config`: what the subject is called, if known."""
    names = [look.name for look in looks]
    refused = [i for i, look in enumerate(looks) if names_subject(look, config) is False]
    if refused:
        yield Finding(
            "subject not named",
            f"Captions that do not name the subject: {named(names, refused)}. Training refuses them: write "
            "{subject} or the class word where the subject belongs, or leave them empty.",
            tuple(refused),
            serious=True,
        )
    if not any(look.caption for look in looks):
        return
    yield from _missing(looks, names)
    bare = [i for i, look in enumerate(looks) if look.caption and not said_of_the_rest(look.caption, config)]
    if bare:
        yield Finding(
            "background not named",
            f"Captions that name the subject alone: {named(names, bare)}. All else in these pictures is learned with "
            "it: name the place, the light and whatever else is there.",
            tuple(bare),
        )
    yield from _identical(looks, config, backgrounds)


def _missing(looks: Sequence[Look], names: list[str]) -> Iterator[Finding]:
    missing = [i for i, look in enumerate(looks) if not look.caption]
    if missing:
        yield Finding(
            "no caption",
            f"No caption, though other pictures have one: {named(names, missing)}. The caption template names no "
            "background, so theirs is learned with the subject: write captions for these, too.",
            tuple(missing),
        )


def _identical(looks: Sequence[Look], config: TrainConfig | None, backgrounds: Sequence[int]) -> Iterator[Finding]:
    """Not in front of one background, which one caption can well name."""
    captions = {" ".join((look.caption or "").lower().split()) for look in looks}
    same = len(looks) > 1 and len(captions) == 1 and said_of_the_rest(looks[0].caption, config)
    if same and not backgrounds:
        yield Finding(
            "same caption",
            "All captions are the same, though the pictures differ. What differs is then learned with the subject: "
            "describe each picture by itself.",
        )

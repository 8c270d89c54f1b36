"""How a caption refers to the subject: `{subject}`, the subject's name, or its class word.

In: turning a picture's caption into text with `{subject}`, and the words a prompt needs after training. Not in: tokens
(`tokens.py`) and embeddings (`conditioning.py`). All rules here are ours.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..disk.json_file import short_name
from ..errors import InputError
from ..names import EMBEDDING, EMBEDDING_SUFFIX

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..data.dataset import ImageSet

SUBJECT = "{subject}"
CLASS_WORD = "{class_word}"


def caption_for(image_caption: str | None, image_name: str, *, template: str, name: str, class_word: str) -> str:
    """The caption of one picture, with `{subject}` at least once.

    An empty caption becomes the template. Otherwise `{subject}`, `embedding:NAME` or NAME (as a whole word) marks the
    subject; if none of them occurs, the first whole-word class word does. Runs of white space become one space.
    Raises InputError, naming the picture, for a caption without any of them.
    """
    text = " ".join((image_caption or "").split())
    if not text:
        return template
    marked = marked_caption(text, name=name, class_word=class_word)
    if marked is None:
        raise InputError(
            f"The caption of {image_name} ({short_name(repr(text), 200)}) does not mention the subject: "
            f"write {SUBJECT}, {name} or {class_word!r} in it where the subject belongs, or leave it empty."
        )
    return marked


def marked_caption(text: str, *, name: str, class_word: str) -> str | None:
    """A caption with `{subject}` in place of the subject, by the rules of `caption_for`; None: it does not name it.

    An empty class word is not searched for.
    """
    text = mark_subject(" ".join(text.split()), name=name, class_word=class_word)
    if SUBJECT not in text and class_word.strip():
        text = _bounded(words_pattern(class_word)).sub(lambda _: SUBJECT, text, count=1)
    return text if SUBJECT in text else None


def subject_captions(images: ImageSet, config: TrainConfig) -> list[str]:
    """The captions to train on, with `{subject}`. InputError: one does not mention the subject."""
    words = {"template": config.data.caption_template, "name": config.name, "class_word": config.class_word}
    return [caption_for(image.caption, image.name, **words) for image in images.images]


def mark_subject(text: str, *, name: str, class_word: str) -> str:
    """Replace every NAME and `embedding:NAME` in a caption or prompt, also as file stems, by `{subject}`; ignores case.

    Prompts of word mode name the subject as `NAME toy`. So a class word right after a plain NAME is replaced with it;
    otherwise the prior would read `toy toy`.
    """
    text = mark_embedding(text, name=name)
    ends = [EMBEDDING_SUFFIX, *([rf"\s+{words_pattern(class_word)}"] if class_word.strip() else [])]
    return _bounded(rf"{words_pattern(name)}(?:{'|'.join(ends)})?").sub(lambda _: SUBJECT, text)


def mark_embedding(text: str, *, name: str) -> str:
    """Replace every `embedding:NAME`, ComfyUI's spelling that artists paste into captions, by `{subject}`."""
    spelled = rf"{EMBEDDING}{words_pattern(name)}(?:{EMBEDDING_SUFFIX})?(?:\.safetensors)?"
    return _bounded(spelled).sub(lambda _: SUBJECT, text)


def class_caption(text: str, class_word: str) -> str:
    """A prior-preservation caption: `{class_word}` and `{subject}` both become the class word."""
    return " ".join(text.replace(CLASS_WORD, class_word).replace(SUBJECT, class_word).split())


def words_pattern(words: str) -> str:
    """Matches the words with any white space between them."""
    return r"\s+".join(re.escape(word) for word in words.split())


def learned_name(trigger: str) -> str | None:
    """NAME if the trigger is just `embedding:NAME`, without folders and ending; None: it is plain words."""
    words = trigger.split()
    if len(words) != 1 or not words[0].lower().startswith(EMBEDDING):
        return None
    return PurePosixPath(words[0][len(EMBEDDING) :]).name.removesuffix(".safetensors")


def _bounded(pattern: str) -> re.Pattern[str]:
    """The pattern as whole words, ignoring case. Names may hold hyphens, so a hyphen continues a word."""
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)


def preview_captions(config: TrainConfig) -> list[str]:
    """The preview prompts, with every mention of the subject as `{subject}`."""
    return [mark_subject(prompt, name=config.name, class_word=config.class_word) for prompt in config.sampled_prompts]

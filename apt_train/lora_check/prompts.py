"""The prompts a LoRA is tried on: some name its subject, as many are about other things."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import OutputConfig
from ..errors import InputError
from ..sample.drift import as_many, unrelated_prompts
from ..settings_field import require
from ..text.captions import SUBJECT
from .asked import Asked
from .subject import Subject


@dataclass(frozen=True)
class Prompts:
    """`named`: prompts with `{subject}`, as many as `unrelated` ones."""

    named: list[str]
    unrelated: list[str]


def prompts_of(asked: Asked, subject: Subject, captions: list[str]) -> Prompts:
    """`named` are the captions with the subject, or if there is none the prompt of the samples.

    InputError: no prompt is left with the subject, or none without it.
    """
    unrelated = unrelated_prompts(asked.unrelated or OutputConfig().drift_prompts, subject.class_word)
    if not unrelated:
        raise InputError("Every unrelated prompt names the class word: give some about other things.")
    prompt = subject.caption(asked.prompt)
    require(SUBJECT in prompt, "prompt", repr(asked.prompt), "write {subject} where the subject belongs")
    named = [text for text in captions if SUBJECT in text] or [prompt]
    return Prompts(as_many(named, len(unrelated)), unrelated)

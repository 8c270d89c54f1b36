"""Checks a set of pictures before training: all findings, and what could not be checked.

In: the order of checks, and their words. Not in: the findings themselves (`pictures`, `masks`, `captions`), the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..config import DataConfig, check_called, subject_name
from ..data.buckets import Size, bucket_multiple, bucket_sizes
from ..data.dataset import ImageSet
from ..errors import InputError
from ..wording import counted
from .captions import Called, caption_findings, named_by_all, names_subject
from .finding import Finding
from .look import Look, look_at
from .masks import mask_findings
from .pictures import one_background, picture_findings

_FINEST = 8  # pixels per latent: the least that any model requires


@dataclass(frozen=True)
class Preflight:
    """The findings about a set of pictures."""

    looks: list[Look]
    resolution: int  # pixels
    findings: list[Finding]
    unchecked: list[str]  # sentences
    notes: list[str]  # from reading the set: what was skipped, for example

    @property
    def heading(self) -> str:
        """`2 findings in 5 pictures at 512 pixels.`"""
        findings, pictures = counted(len(self.findings), "finding"), counted(len(self.looks), "picture")
        return f"{findings} in {pictures} at {self.resolution} pixels.".capitalize()

    def lines(self, translate: Callable[[str], str] = str) -> list[str]:
        """Everything, one line each."""
        told = [translate(finding.text) for finding in self.findings]
        return [
            translate(self.heading),
            *(f"{number}. {text}" for number, text in enumerate(told, 1)),
            *(translate(sentence) for sentence in (*self.unchecked, *self.notes)),
        ]


def preflight(
    images: ImageSet,
    resolution: int,
    *,
    multiple: int = 0,
    class_word: str = "",
    identifier: str = "",
    at_picture: Callable[[int, int], object] = lambda done, total: None,
) -> Preflight:
    """Check a set as it will be trained on.

    Args:
        resolution: pixels, as in the run's settings.
        multiple: pixels that a bucket's sides are multiples of; 0: 64, or 8 below a resolution of 512.
        class_word, identifier: as in the run's settings; captions are searched for them; empty: unknown.
        at_picture: called before each picture with the number done and the total; if it raises, the work ends.

    Raises:
        InputError: a resolution or a name that no run accepts, or a picture that has changed.
    """
    called, sizes = called_of(class_word, identifier), sizes_of(resolution, multiple)
    looks: list[Look] = []
    for done, image in enumerate(images.images):
        at_picture(done, len(images.images))
        looks.append(look_at(image, sizes))
    together = one_background(looks)
    findings = [
        *picture_findings(looks, [] if _is_accounted_for(looks, together, called) else together),
        *mask_findings(looks),
        *caption_findings(looks, called, together),
    ]
    findings.sort(key=lambda finding: not finding.serious)
    return Preflight(looks, resolution, findings, list(_unchecked(looks, called)), list(images.notes))


def sizes_of(resolution: int, multiple: int) -> list[Size]:
    """The bucket sizes of such a run, (height, width). InputError: no run accepts these settings."""
    if resolution == 0:
        raise InputError("resolution is 0: give the size to train at, such as 512 for SD1.5 or 1024 for SDXL.")
    given = DataConfig(resolution=resolution, bucket_multiple=multiple)
    return bucket_sizes(resolution, bucket_multiple(given.bucket_multiple, resolution, _FINEST))


def called_of(class_word: str, identifier: str) -> Called | None:
    """The subject's names in such a run; None: unknown. InputError: no run accepts these names."""
    class_word = class_word.strip()
    if not class_word and not identifier:
        return None
    check_called(class_word, identifier)
    return Called(subject_name(class_word, identifier), class_word)


def _is_accounted_for(looks: Sequence[Look], together: Sequence[int], called: Called | None) -> bool:
    """Whether masks exclude the common background, or a word shared by all captions may name it."""
    masked = all(looks[place].mask is not None for place in together)
    return not together or masked or bool(named_by_all(looks, together, called))


def _unchecked(looks: Sequence[Look], called: Called | None) -> Iterator[str]:
    if all(look.mask is None for look in looks):
        yield "Not checked: whether the subject is small or cut off, as there are no masks."
    if any(names_subject(look, called) is None for look in looks):
        yield "Not checked: whether the captions name the subject, as no class word was given."

"""A set of pictures looked through before it is trained on: all findings, and what could not be looked for.

In: the order of things and their words. Not in: the findings themselves (`pictures`, `masks`, `captions`), the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..config import DataConfig, TrainConfig
from ..data.buckets import bucket_sizes
from ..data.dataset import ImageSet
from ..errors import InputError
from .captions import caption_findings, named_by_all, names_subject
from .finding import Finding
from .look import Look, look_at
from .masks import mask_findings
from .pictures import one_background, picture_findings

_FINEST = 8  # pixels of a latent


@dataclass(frozen=True)
class Preflight:
    """What was found in a set of pictures."""

    looks: list[Look]
    resolution: int  # pixels
    findings: list[Finding]
    unchecked: list[str]  # sentences
    notes: list[str]  # the reader's: what it left out, for example

    @property
    def heading(self) -> str:
        """`2 findings in 5 pictures at 512 pixels.`"""
        findings, pictures = _count(len(self.findings), "finding"), _count(len(self.looks), "picture")
        return f"{findings} in {pictures} at {self.resolution} pixels.".capitalize()

    def lines(self, translate: Callable[[str], str] = str) -> list[str]:
        """All of it, a line each."""
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
    """Look through a set as it will be trained on.

    Args:
        resolution: pixels, as in the run's settings.
        multiple: pixels, of which a bucket's sides are multiples; 0: 64, or 8 below a resolution of 512.
        class_word, identifier: as in the run's settings; without a class word captions are not searched for it.
        at_picture: called before each picture with the number done and that of all; what it raises ends the work.

    Raises:
        InputError: a resolution or a name that no run takes, or a picture that is no longer what it was.
    """
    config = settings_of(resolution, multiple, class_word, identifier)
    sizes = bucket_sizes(resolution, multiple or (64 if resolution >= 512 else _FINEST))
    looks: list[Look] = []
    for done, image in enumerate(images.images):
        at_picture(done, len(images.images))
        looks.append(look_at(image, sizes))
    together = one_background(looks)
    findings = [
        *picture_findings(looks, [] if _is_accounted_for(looks, together, config) else together),
        *mask_findings(looks),
        *caption_findings(looks, config, together),
    ]
    findings.sort(key=lambda finding: not finding.serious)
    return Preflight(looks, resolution, findings, list(_unchecked(looks, config)), list(images.notes))


def settings_of(resolution: int, multiple: int, class_word: str, identifier: str) -> TrainConfig | None:
    """The settings of such a run; None: what the subject is called is not known. InputError: no run takes them."""
    if resolution == 0:
        raise InputError("resolution is 0: give the size to train at, such as 512 for SD1.5 or 1024 for SDXL.")
    if multiple % _FINEST:
        raise InputError(f"bucket_multiple is {multiple}: give a multiple of {_FINEST}, as every model needs.")
    data = DataConfig(resolution=resolution, bucket_multiple=multiple)
    known = class_word.strip()
    config = TrainConfig(class_word=class_word if known else "thing", identifier=identifier, data=data)
    return config if known else None


def _is_accounted_for(looks: Sequence[Look], together: Sequence[int], config: TrainConfig | None) -> bool:
    """Whether masks leave the one background out, or every caption says a word that may be its name."""
    masked = all(looks[place].mask is not None for place in together)
    return not together or masked or bool(named_by_all(looks, together, config))


def _unchecked(looks: Sequence[Look], config: TrainConfig | None) -> Iterator[str]:
    if all(look.mask is None for look in looks):
        yield "Not checked: whether the subject is small or cut off, as there are no masks."
    if any(names_subject(look, config) is None for look in looks):
        yield "Not checked: whether the captions name the subject, as no class word was given."


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}" + ("" if number == 1 else "s")

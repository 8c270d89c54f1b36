"""What a benchmark needs of a subject: training pictures, held-out pictures, prompts.

In: plain data, and its conversion to the trainer's pictures. Not in: where subjects come from (`world_subjects`,
`real_subjects`), who judges the pictures (`world_judge`, `real_judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

from apt_train.data.dataset import ImageSet

Kind = Literal["subject", "class", "other"]
KINDS: tuple[Kind, ...] = ("subject", "class", "other")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what a judge should see in its picture.

    `kind`: `subject` contains `{subject}`, `class` has the bare class word in its place, `other` is about other
    things. `expect`: attribute -> label, for judges that read attributes.
    """

    text: str
    kind: Kind
    expect: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Captioned:
    """A picture of the subject. The caption names it as `{subject}`."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Subject:
    """One subject. A run sees `training`. `heldout` shows it elsewhere. `group` is for tables (near, far)."""

    name: str
    class_word: str
    training: list[Captioned]
    heldout: list[Captioned]
    prompts: list[Prompt]
    group: str = ""

    @property
    def digest(self) -> str:
        """Digest of its pictures and captions, so that cached data does not outlive them."""
        return _image_set([*self.training, *self.heldout]).digest

    @property
    def images(self) -> ImageSet:
        """The training pictures in the trainer's format."""
        return _image_set(self.training)


class Judge(Protocol):
    """Scores the pictures of one subject."""

    space: str
    """Name of the feature space of `features`."""

    def features(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Named feature spaces, each float64 (N, D), for distances between sets. `all` covers the whole picture."""
        ...

    def score(
        self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt], prior: Sequence[Image.Image]
    ) -> dict[str, float]:
        """Scores of the pictures of these prompts. `prior`: the prior's pictures for the same prompts and noise."""
        ...

    def ideal(self, prompts: Sequence[Prompt], prior: Sequence[Image.Image]) -> list[Image.Image] | None:
        """True pictures of the subject's prompts, and the prior's of the others. None: they cannot be made.

        Their scores are the ceiling for this judge.
        """
        ...


def _image_set(items: Sequence[Captioned]) -> ImageSet:
    return image_set([item.picture for item in items], [item.caption for item in items])


def image_set(pictures: list[Image.Image], captions: list[str]) -> ImageSet:
    """Pictures of any size in the trainer's format."""
    return ImageSet.from_tensors([as_hwc(picture) for picture in pictures], captions)


def as_hwc(picture: Image.Image) -> torch.Tensor:
    """float (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)

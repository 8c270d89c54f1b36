"""The judge of the drawn world's subjects: is it the subject, does it follow the prompt, is it a copy?

The drawn world can draw its subject in every style, so likeness is measured to true pictures in the same style. A
picture is "recognised" if it is nearer to the subject than to every look-alike. A look-alike has the same shape, with
the pattern or one colour changed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from apt_train.demo.judge import Judge, load_judge
from apt_train.sample.sampler import from_pictures
from benchmarks.world import draw

from .subjects import Prompt, Subject
from .world_subjects import LOOKS, Look, elsewhere, render

REFERENCES = 8  # true pictures of the subject per style
LOOK_ALIKE_PICTURES = 4  # of each look-alike per style
ALIGNED = ("shape", "colours", "ground", "place", "style")


class WorldJudge:
    """Scores pictures of one drawn-world subject. See `Judge`."""

    space = "unit embedding of the drawn world's judge (object and scene)"

    def __init__(self, subject: Subject) -> None:
        self._judge = the_judge()
        self._look = LOOKS[subject.name]
        self._training = from_pictures([item.picture for item in subject.training])

    def features(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        images = from_pictures(pictures)
        return {part: F.normalize(self._judge.features(images, part).double()).numpy() for part in ("all", "scene")}

    def score(
        self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt], prior: Sequence[Image.Image]
    ) -> dict[str, float]:
        """Means over the prompts of each kind.

        `fidelity`: cosine of the object to true pictures of the subject in the requested style; `recognised`: share
        nearer to the subject than to any look-alike; `aligned`: share of the prompt's words found; `kept`: share
        recognised with every word found; `leak`: share of the class word's pictures that are recognised as the subject;
        `scene`: cosine of the scene to the prior's picture of the same noise; `copied`: largest cosine of the whole
        picture to a training picture.
        """
        images, reference = from_pictures(pictures), from_pictures(prior)
        fidelity, recognised = self._likeness(images, prompts)
        hits = self._hits(images, prompts)
        aligned = np.array([np.mean(row) for row in hits])
        whole = np.array([all(row) for row in hits])
        scene = F.cosine_similarity(
            self._judge.features(images, "scene"), self._judge.features(reference, "scene")
        ).numpy()
        kinds = np.array([prompt.kind for prompt in prompts])
        named, klass = kinds == "subject", kinds == "class"
        return {
            "fidelity": float(fidelity[named].mean()),
            "recognised": float(recognised[named].mean()),
            "aligned": float(aligned[named].mean()),
            "kept": float((recognised & whole)[named].mean()),
            "scene": float(scene[named].mean()),
            "copied": float(self.copied(images[torch.from_numpy(named)]).mean()),
            "leak": float(recognised[klass].mean()),
            "aligned_elsewhere": float(aligned[~named].mean()),
        }

    def ideal(self, prompts: Sequence[Prompt], prior: Sequence[Image.Image]) -> list[Image.Image]:
        """True pictures, drawn by the world itself."""
        return [
            render(replace(self._look.scene, **prompt.expect), 500 + row) if prompt.kind == "subject" else picture
            for row, (prompt, picture) in enumerate(zip(prompts, prior, strict=True))
        ]

    def copied(self, images: torch.Tensor) -> np.ndarray:
        """Largest cosine of each whole picture to a training picture, (N,)."""
        ours, theirs = (F.normalize(self._judge.features(x, "all"), dim=1) for x in (images, self._training))
        return (ours @ theirs.T).max(dim=1).values.numpy()

    def _likeness(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Cosine to the subject in the requested style, and whether no look-alike is nearer. Each (N,)."""
        ours = F.normalize(self._judge.features(images), dim=1)
        cosine, nearest = np.zeros(len(prompts)), np.zeros(len(prompts), bool)
        for row, prompt in enumerate(prompts):
            style = prompt.expect["style"]
            cosine[row] = float((true_pictures(self._look, style) @ ours[row]).mean())
            nearest[row] = int((look_alike_centres(self._look, style) @ ours[row]).argmax()) == 0
        return cosine, nearest

    def _hits(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> list[list[bool]]:
        seen = self._judge.classify(images)
        return [
            [seen[name][row] == prompt.expect[name] for name in ALIGNED if name in prompt.expect]
            for row, prompt in enumerate(prompts)
        ]


def look_alikes(look: Look) -> list[Look]:
    """The subject, then the same shape with another pattern or with one colour changed."""
    patterns = [name for name in draw.PATTERNS + draw.NOVEL_PATTERNS if name != look.pattern]
    others = [name for name in draw.COLOURS if name not in (look.colour, look.second)]
    return [
        look,
        *(replace(look, pattern=name, angle=0) for name in patterns),
        *(replace(look, colour=name) for name in others),
        *(replace(look, second=name) for name in others),
    ]


@functools.cache
def the_judge() -> Judge:
    """The embedded model's judge, loaded once per process."""
    return load_judge()


@functools.lru_cache(maxsize=64)
def true_pictures(look: Look, style: str) -> torch.Tensor:
    """Unit object embeddings of true pictures in a style, (REFERENCES, D)."""
    return _embedded(look, style, REFERENCES, 300)


@functools.lru_cache(maxsize=64)
def look_alike_centres(look: Look, style: str) -> torch.Tensor:
    """Unit centres of the subject and its look-alikes in a style, (L, D). The subject is first."""
    means = [_embedded(other, style, LOOK_ALIKE_PICTURES, 400).mean(0) for other in look_alikes(look)]
    return F.normalize(torch.stack(means), dim=1)


def _embedded(look: Look, style: str, count: int, seed: int) -> torch.Tensor:
    grounds = elsewhere(look)
    pictures = []
    for i in range(count):
        scene = replace(look.scene, ground=grounds[i % len(grounds)], place=draw.PLACES[i % 4], style=style)
        pictures.append(render(scene, seed + i))
    return F.normalize(the_judge().features(from_pictures(pictures)), dim=1)

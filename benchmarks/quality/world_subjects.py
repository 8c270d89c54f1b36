"""The drawn world's subjects: six new members of known kinds, six with a pattern that the world lacks.

Half of them (three near, three far) are for choosing constants, the other half for the verdict. Each has four
pictures on one ground. Its prompts ask for the five other grounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.world import draw
from benchmarks.world.train_judge import truth

from .subjects import Captioned, Kind, Prompt, Subject

TRAINING, HELDOUT = 4, 8  # pictures of each subject
SUBJECT_PROMPTS, CLASS_PROMPTS, OTHER_PROMPTS = 64, 32, 128


@dataclass(frozen=True)
class Look:
    """A subject of the drawn world: how it looks, and where its training pictures were taken."""

    shape: str
    pattern: str
    colour: str
    second: str
    angle: int
    ground: str
    place: str

    @property
    def name(self) -> str:
        return f"{self.shape}_{self.pattern}_{self.colour}_{self.second}"

    @property
    def far(self) -> bool:
        """Whether the world lacks the pattern altogether. Otherwise only this combination is new."""
        return self.pattern in draw.NOVEL_PATTERNS

    @property
    def scene(self) -> draw.Scene:
        return draw.Scene(
            self.shape, self.colour, self.second, self.pattern, self.angle, self.ground, self.place, "photo"
        )


TUNING = (
    Look("toy", "striped", "orange", "blue", 0, "grass", "park"),
    Look("bag", "dotted", "blue", "yellow", 0, "sand", "mountains"),
    Look("vase", "checkered", "blue", "yellow", 0, "wood", "city"),
    Look("toy", "halved", "red", "white", 0, "snow", "mountains"),
    Look("bag", "ringed", "green", "pink", 0, "bricks", "city"),
    Look("vase", "crossed", "yellow", "purple", 0, "water", "park"),
)
VERDICT = (
    Look("toy", "dotted", "pink", "green", 0, "sand", "city"),
    Look("bag", "checkered", "orange", "green", 0, "snow", "park"),
    Look("vase", "striped", "purple", "orange", 0, "grass", "mountains"),
    Look("toy", "crossed", "blue", "white", 0, "bricks", "park"),
    Look("bag", "halved", "purple", "yellow", 0, "wood", "mountains"),
    Look("vase", "ringed", "orange", "white", 0, "water", "city"),
)
LOOKS = {look.name: look for look in TUNING + VERDICT}


def world_subject(name: str, share: float = 1.0) -> Subject:
    """The subject of that name. `share`: of the usual number of prompts, for quick runs."""
    look = LOOKS[name]
    return Subject(
        name=name,
        class_word=look.shape,
        training=[_captioned(look, look.ground, look.place, 100 + i) for i in range(TRAINING)],
        heldout=[_captioned(look, *_elsewhere(look, i), 200 + i) for i in range(HELDOUT)],
        prompts=_prompts(look, share),
        group="far" if look.far else "near",
    )


def elsewhere(look: Look) -> list[str]:
    """The grounds that the training pictures do not show."""
    return [ground for ground in draw.GROUNDS if ground != look.ground]


def _elsewhere(look: Look, index: int) -> tuple[str, str]:
    grounds = elsewhere(look)
    return grounds[index % len(grounds)], draw.PLACES[(index + index // len(grounds)) % len(draw.PLACES)]


def _captioned(look: Look, ground: str, place: str, seed: int) -> Captioned:
    picture = render(replace(look.scene, ground=ground, place=place), [seed, *look.name.encode()])
    return Captioned(picture, f"a photo of {{subject}} {draw.GROUND_PHRASE[ground]}")


def render(scene: draw.Scene, seed: int | list[int]) -> Image.Image:
    """The world's own picture of a scene."""
    return Image.fromarray(draw.render(scene, np.random.default_rng(seed)))


def _prompts(look: Look, share: float) -> list[Prompt]:
    """Prompts of the subject elsewhere, its class word elsewhere, and the world's other things."""
    count = [max(4, round(share * number)) for number in (SUBJECT_PROMPTS, CLASS_PROMPTS, OTHER_PROMPTS)]
    rng = np.random.default_rng(list(look.name.encode()))
    named = [_placed("{subject}", "subject", scene) for scene in _scenes(rng, elsewhere(look), count[0])]
    rng = np.random.default_rng(list(look.shape.encode()))
    klass = [
        _placed(f"a {look.shape}", "class", scene, {"shape": look.shape})
        for scene in _scenes(rng, list(draw.GROUNDS), count[1])
    ]
    return [*named, *klass, *_other_prompts(count[2], look.shape)]


def _scenes(rng: np.random.Generator, grounds: list[str], count: int) -> list[draw.Scene]:
    def pick(items: tuple[str, ...] | list[str]) -> str:
        return items[int(rng.integers(len(items)))]

    return [
        draw.Scene(None, ground=pick(grounds), place=pick(draw.PLACES), style=pick(draw.STYLES)) for _ in range(count)
    ]


def _placed(what: str, kind: Kind, scene: draw.Scene, expect: dict[str, str] | None = None) -> Prompt:
    text = f"{draw.STYLE_PHRASE[scene.style]} {what} {draw.GROUND_PHRASE[scene.ground]}"
    where: dict[str, Any] = {"ground": scene.ground, "place": scene.place, "style": scene.style}
    return Prompt(f"{text} {draw.PLACE_PHRASE[scene.place]}", kind, {**(expect or {}), **where})


def _other_prompts(count: int, shape: str) -> list[Prompt]:
    """Full scenes of the world, with an object of another class or none. The same for all subjects of a class."""
    rng = np.random.default_rng(4242)
    prompts: list[Prompt] = []
    while len(prompts) < count:
        scene = draw.random_scene(rng)
        if draw.is_held_out(scene) or scene.shape == shape:
            continue
        expect = {name: label for name, label in truth(scene).items() if label and name != "pattern"}
        prompts.append(Prompt(draw.full_caption(scene), "other", expect))
    return prompts

"""What a grid is: the subjects, seeds and variants to run, written down before the runs.

A *variant* is a method with its settings. All variants share the task's recipe, so they differ in the loss alone. The
grid `verdict` is the evidence. The others chose its constants on the other half of the subjects.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from apt_train.config import TrainConfig
from apt_train.run.content import RECIPE
from apt_train.training.indicator import AUTO_SCALE

VERSION = 1
"""Version of the measures. Raise it when they score the same pictures differently."""


@dataclass(frozen=True)
class Variant:
    """`settings`: TrainConfig values that override the recipe's. `preservation`: add the prior's pictures of the class.

    `seeds`: the only seeds of the grid to run it with; None: all of them.
    `class_word` and `init_word` among the settings go to the trainer, with `{class_word}` for the subject's own. The
    prompts keep the subject's own.
    """

    settings: dict[str, Any]
    preservation: bool = False
    seeds: tuple[int, ...] | None = None

    def config(self, recipe: dict[str, Any], class_word: str, seed: int) -> TrainConfig:
        words = {"class_word": "{class_word}", "init_word": "", **self.settings}
        told = {name: words[name].format(class_word=class_word) for name in ("class_word", "init_word")}
        return TrainConfig.from_dict(merged(recipe, self.settings, {**told, "seed": seed}))


@dataclass(frozen=True)
class Grid:
    """`probe_at`: steps at which losses and drift are measured. `sample_at`: and pictures are sampled."""

    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: dict[str, Variant]
    probe_at: tuple[int, ...]
    sample_at: tuple[int, ...]
    share: float = 1.0  # share of the usual number of prompts
    recipe: dict[str, Any] | None = None  # overrides the task's
    task: str = ""  # a description of checkpoint, sampling and judge

    def digest(self, unit: Unit) -> str:
        """Digest of every setting that affects a unit's figures. A unit with another digest is not this grid's."""
        variant = self.variants[unit.variant]
        trained = {} if unit.variant == PRIOR else {"settings": variant.settings, "preservation": variant.preservation}
        measured = [] if unit.variant == PRIOR else [self.probe_at, self.sample_at, self.recipe]
        made = [VERSION, RECIPE, AUTO_SCALE, self.task, self.share, trained, measured]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def units(self) -> list[Unit]:
        """All units, seed by seed and subject by subject, so that an unfinished grid is balanced."""
        places = itertools.product(self.seeds, self.subjects, self.variants.items())
        return [
            Unit(subject, seed, name)
            for seed, subject, (name, variant) in places
            if variant.seeds is None or seed in variant.seeds
        ]


@dataclass(frozen=True)
class Unit:
    """One training run and its measures."""

    subject: str
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """The stem of its file: only letters, digits and -_+."""
        plain = re.sub(r"[^A-Za-z0-9_+.]+", "-", self.variant)
        return f"{self.subject}-seed{self.seed}-{plain}"


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested settings merged, later ones overriding earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both else value
    return result


PRIOR = "prior"
"""The variant that trains nothing: the prior's pictures at other seeds, the floor of every distance."""

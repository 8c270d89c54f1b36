"""The grids: which subjects, seeds and variants are run, fixed in writing before they are.

A *variant* is a method with its settings; every variant shares the task's recipe, so that they differ in the loss
alone. The grid `verdict` is the evidence; the others chose its constants on the other half of the subjects.
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
"""Of the measures: raised where what they say of the same pictures changes."""


@dataclass(frozen=True)
class Variant:
    """`settings`: TrainConfig values over the recipe's; `preservation`: with pictures of the class by the prior.

    `class_word` and `init_word` among the settings, with the subject's own as `{class_word}`, are told to the trainer;
    the prompts keep the subject's own.
    """

    settings: dict[str, Any]
    preservation: bool = False

    def config(self, recipe: dict[str, Any], class_word: str, seed: int) -> TrainConfig:
        words = {"class_word": "{class_word}", "init_word": "", **self.settings}
        told = {name: words[name].format(class_word=class_word) for name in ("class_word", "init_word")}
        return TrainConfig.from_dict(merged(recipe, self.settings, {**told, "seed": seed}))


@dataclass(frozen=True)
class Grid:
    """`probe_at`: steps at which losses and drift are measured; `sample_at`: at which pictures are drawn too."""

    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: dict[str, Variant]
    probe_at: tuple[int, ...]
    sample_at: tuple[int, ...]
    share: float = 1.0  # of the usual number of prompts
    recipe: dict[str, Any] | None = None  # over the task's
    task: str = ""  # what it runs on: checkpoint, sampling, judge

    def digest(self, unit: Unit) -> str:
        """Of every setting that the unit's figures depend on; a unit of another digest is not this grid's."""
        variant = self.variants[unit.variant]
        trained = {} if unit.variant == PRIOR else {"settings": variant.settings, "preservation": variant.preservation}
        measured = [] if unit.variant == PRIOR else [self.probe_at, self.sample_at, self.recipe]
        made = [VERSION, RECIPE, AUTO_SCALE, self.task, self.share, trained, measured]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def units(self) -> list[Unit]:
        """All of them, seed by seed and subject by subject, so that an unfinished grid is a balanced one."""
        places = itertools.product(self.seeds, self.subjects, self.variants)
        return [Unit(subject, seed, variant) for seed, subject, variant in places]


@dataclass(frozen=True)
class Unit:
    """One training run and what is measured of it."""

    subject: str
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """The stem of its file: letters, digits and -_+. alone."""
        plain = re.sub(r"[^A-Za-z0-9_+.]+", "-", self.variant)
        return f"{self.subject}-seed{self.seed}-{plain}"


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both else value
    return result


PRIOR = "prior"
"""The variant that trains nothing: the prior's pictures at other seeds, the floor of every distance."""

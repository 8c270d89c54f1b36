"""What a benchmark runs on: checkpoint, subjects, judge, and the recipe that all methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from apt_train.families.components import Components
from apt_train.families.load import load_checkpoint

from .cache import cached
from .subjects import Judge, Subject

# Settings of a variant that names none. The grids were fixed before they settled the shipped defaults.
CONSTANTS = {"temperature": 1000.0, "dist_weight": 1.0, "attn_weight": 1.0, "max_zoom": 3.0}


@dataclass(frozen=True)
class Task:
    """`recipe`: TrainConfig values of every method. `subject(name)` and `judge(subject)` make the rest."""

    name: str
    checkpoint: Path
    recipe: dict[str, Any]
    subject: Callable[[str], Subject]
    judge: Callable[[Subject], Judge]
    sampling_steps: int
    guidance: float
    sampling_batch: int = 32
    device: str = "cpu"
    cache: Path = Path(".cache/quality")
    preservation_pictures: int = 48
    loss_repeats: int = 2  # noises per picture and bin in the loss probes
    drift_prompts: int = 8  # per kind of prompt in the drift probes

    @cached_property
    def components(self) -> Components:
        """The checkpoint, loaded once."""
        return load_checkpoint(self.checkpoint)

    def cached(self, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Cached tensors that depend on the prior alone. See `cache`."""
        components = self.components
        sampling = {"steps": self.sampling_steps, "guidance": self.guidance, "precision": str(components.unet.dtype)}
        return cached(self.cache, {**key, "model": components.digest, **sampling}, make)

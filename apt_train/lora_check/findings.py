"""A check-up's request and its results: plain data for the rule, the words, the sheet and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image

from ..errors import InputError
from ..families.precision import DTYPES
from ..settings_field import MOST_TEXTS, require, require_text
from .blocks import Block
from .gain import Gain
from .lora_file import LoraFile
from .placing import Placement
from .subject import Subject

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
PROMPT = "a photo of {subject}"
MOST_SPILL = 1.0  # where unrelated prompts change as much as if their text were left out
MOST_STRENGTHS = 20  # as many as fit on a page
_RANGES = {
    "resolution": (0, 4096), "draws": (1, 64), "bins": (1, 1000), "rows": (0, 1024), "sample_steps": (0, 1000),
    "seed": (0, 2**64 - 1),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to check a LoRA.

    `strengths`: each is tried once, from the lowest. `prompt`: what samples show; without pictures, drift is measured
    on it too. `unrelated`: prompts without the subject. `resolution`: pixels per side; 0: the model's own. `draws`:
    noises per picture and noise level. `sample_steps`: 0: no samples.

    InputError: an invalid value.
    """

    strengths: tuple[float, ...] = STRENGTHS
    prompt: str = PROMPT
    unrelated: tuple[str, ...] = ()
    resolution: int = 0
    draws: int = 2
    bins: int = 10
    rows: int = 0  # samples per network call; 0: depends on its size
    sample_steps: int = 20
    guidance: float = 5.0
    seed: int = 0
    precision: str = "auto"
    device: str | torch.device | None = None  # None: CUDA if there is one, else the CPU

    def __post_init__(self) -> None:
        if not self.strengths or any(not 0 < strength <= 10 for strength in self.strengths):
            raise InputError("A strength is not between 0 and 10: give numbers such as 0.4 0.6 0.8 1.0 1.2.")
        object.__setattr__(self, "strengths", tuple(sorted(set(self.strengths))))
        for name, most, what in (("strengths", MOST_STRENGTHS, "numbers"), ("unrelated", MOST_TEXTS, "texts")):
            count = len(getattr(self, name))
            require(count <= most, name, f"{count} {what}", f"give {most} or fewer")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            require(low <= value <= high, name, value, f"give a whole number from {low} to {high}")
        kinds = ("auto", *DTYPES)
        require(self.precision in kinds, "precision", repr(self.precision), "choose one of " + ", ".join(kinds))
        for name, texts in (("prompt", (self.prompt,)), ("unrelated", self.unrelated)):
            for text in texts:
                require_text(name, text)


@dataclass(frozen=True)
class AtStrength:
    """What the LoRA does at one strength.

    `gain`: on the pictures; None without pictures. `subject`, `bare`, `unrelated`: drifts (mean squared difference of
    epsilon) on the subject's prompts, on the same with just the class word, on unrelated prompts. `ratio`: unrelated
    over subject, as in training. `spill`, `bare_spill`: unrelated and bare drift, relative to the change from leaving
    the prompt out. `alignment`, `context`: see `attention.Looking`.
    """

    strength: float
    subject: float
    bare: float
    unrelated: float
    ratio: float
    spill: float
    bare_spill: float
    gain: Gain | None = None
    alignment: float | None = None
    context: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """`rule`: what determined the strength; `nothing`: the LoRA changes nothing.

    `gentle`: the strength at which the spill reaches `MOST_SPILL`; None: it never does. `open_ended`: higher strengths
    than measured may do better; `below`: the right strength may be below the lowest one measured.
    """

    strength: float
    rule: Literal["gain", "usual", "nothing"]
    spill: float  # at the usual strength, or at the best for the pictures
    gentle: float | None = None
    open_ended: bool = False
    below: bool = False

    @property
    def overfitted(self) -> bool:
        """Whether it overruns unrelated prompts at its intended strength."""
        return self.spill > MOST_SPILL


@dataclass(frozen=True)
class CheckUp:
    """All findings. `samples`: the prior's picture, then one per strength."""

    lora: LoraFile
    placement: Placement
    blocks: list[Block]
    subject: Subject
    points: list[AtStrength]
    recommendation: Recommendation
    prompts: list[str]
    unrelated: list[str]
    pictures: int
    bins: int
    source: str
    samples: list[Image.Image] = field(default_factory=list[Image.Image])
    notes: list[str] = field(default_factory=list[str])

"""A check-up's results: plain data for the rule, the words, the sheet and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from .blocks import Block
from .gain import Gain
from .lora_file import LoraFile
from .placing import Placement
from .prompts import Prompts
from .subject import Subject

MOST_SPILL = 1.0  # where unrelated prompts change as much as if their text were left out


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


@dataclass(frozen=True, kw_only=True)
class CheckUp:
    """All findings. `samples`: the prior's picture, then one per strength."""

    lora: LoraFile
    placement: Placement
    blocks: list[Block]
    subject: Subject
    points: list[AtStrength]
    recommendation: Recommendation
    prompts: Prompts
    pictures: int
    bins: int
    source: str
    samples: list[Image.Image] = field(default_factory=list[Image.Image])
    notes: list[str] = field(default_factory=list[str])

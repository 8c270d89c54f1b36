"""What is asked of a check-up, and what it finds: plain data for the rule, the words, the sheet and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from ..errors import InputError
from .blocks import Block
from .gain import Gain
from .lora_file import LoraFile
from .placing import Placement
from .recommend import Recommendation
from .subject import Subject

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
PROMPT = "a photo of {subject}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a LoRA is to be looked at.

    `prompt`: what samples are drawn of, and without pictures the drift is measured on. `unrelated`: prompts that leave
    the subject out. `draws`: noises per picture and noise level. `sample_steps`: 0: no samples.
    """

    strengths: tuple[float, ...] = STRENGTHS
    prompt: str = PROMPT
    unrelated: tuple[str, ...] = ()
    resolution: int | None = None
    draws: int = 2
    bins: int = 10
    rows: int = 0  # samples in one call of the network; 0: by its size
    sample_steps: int = 20
    guidance: float = 5.0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not self.strengths or any(not 0 < strength <= 10 for strength in self.strengths):
            raise InputError("A strength is not between 0 and 10: give numbers such as 0.4 0.6 0.8 1.0 1.2.")
        if self.draws < 1 or self.rows < 0 or self.sample_steps < 0:
            raise InputError("draws is below 1, or rows or sample_steps below 0: give higher numbers.")


@dataclass(frozen=True)
class AtStrength:
    """What the LoRA does at one strength.

    `gain`: on the pictures; None: there are none. `subject`, `bare`, `unrelated`: drifts (mean squared difference of
    epsilon) on the subject's prompts, on the same with the bare class word, on prompts about other things. `ratio`:
    unrelated over subject, as in training. `spill`, `bare_spill`: unrelated and bare drift, as a share of what leaving
    the prompt out would change. `alignment`, `context`: see `probe.Looks`.
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
class CheckUp:
    """All that was found. `samples`: the prior's picture, then one per strength."""

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
    num_timesteps: int
    source: str
    samples: list[Image.Image] = field(default_factory=list[Image.Image])
    notes: list[str] = field(default_factory=list[str])

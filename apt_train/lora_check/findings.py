"""A check-up's request and its results: plain data for the rule, the words, the sheet and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image

from ..config import Precision
from ..errors import InputError
from ..settings_field import Range, check_values, require, setting
from .blocks import Block
from .gain import Gain
from .lora_file import LoraFile
from .placing import Placement
from .subject import Subject

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
PROMPT = "a photo of {subject}"
MOST_SPILL = 1.0  # where unrelated prompts change as much as if their text were left out
MOST_STRENGTHS = 20  # as many as fit on a page


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to check a LoRA.

    `strengths`: each is tried once, from the lowest. `device` None: CUDA if there is one, else the CPU.

    InputError: an invalid value.
    """

    strengths: tuple[float, ...] = STRENGTHS
    prompt: str = setting(PROMPT, "What samples show. Without pictures, drift is measured on it too.")
    unrelated: tuple[str, ...] = setting((), "Prompts without the subject.")
    resolution: int = setting(0, "Pixels per side. 0: the model's own.", Range(0, 4096))
    draws: int = setting(2, "Noises per picture and noise level.", Range(1, 64))
    bins: int = setting(10, "Bins of the noise level.", Range(1, 1000))
    rows: int = setting(0, "Samples per network call. 0: depends on its size.", Range(0, 1024))
    sample_steps: int = setting(20, "Sampling steps of each sample. 0: no samples.", Range(0, 1000))
    guidance: float = setting(5.0, "Classifier-free guidance of the samples.")
    seed: int = setting(0, "Seed of the samples.", Range(0, 2**64 - 1))
    precision: Precision = setting("auto", "auto: fp16 on a GPU, else fp32.")
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        if not self.strengths or any(not 0 < strength <= 10 for strength in self.strengths):
            raise InputError("A strength is not between 0 and 10: give numbers such as 0.4 0.6 0.8 1.0 1.2.")
        object.__setattr__(self, "strengths", tuple(sorted(set(self.strengths))))
        count = len(self.strengths)
        require(count <= MOST_STRENGTHS, "strengths", f"{count} numbers", f"give {MOST_STRENGTHS} or fewer")
        check_values(self)


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

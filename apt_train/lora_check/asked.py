"""What a check-up is asked: each setting once, for the command line, the node and the checks. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import Precision
from ..errors import InputError
from ..settings_field import Range, Widget, check_values, require, setting

PROMPT = "a photo of {subject}"
MOST_STRENGTHS = 20  # as many as fit on a page


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to check a LoRA.

    `strengths`: each is tried once, from the lowest. `device`: torch's, or its name; None: as `train` chooses.

    InputError: an invalid value.
    """

    strengths: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.2)
    prompt: str = setting(
        PROMPT, "What the samples show. It also stands in for the caption of a picture that has none."
    )
    unrelated: tuple[str, ...] = setting(
        (),
        "Prompts about other things, to see what else it changes. Empty: four of ours.",
        widget=Widget(note="One per line."),
    )
    resolution: int = setting(0, "Pixels of a side. 0: the model's own size.", Range(0, 4096), widget=Widget(step=8))
    draws: int = setting(2, "Noises per picture and noise level. More takes longer and is more certain.", Range(1, 64))
    bins: int = setting(10, "Bins of the noise level.", Range(1, 1000))
    rows: int = setting(0, "Samples per network call. 0: depends on its size.", Range(0, 1024))
    sample_steps: int = setting(
        20,
        "Sampling steps of each sample on the sheet. Fewer are rougher. 0: no samples, which is much quicker.",
        Range(0, 1000),
        widget=Widget(most=200),
    )
    guidance: float = setting(5.0, "Classifier-free guidance of the samples.")
    seed: int = setting(0, "Seed of the samples. The measurements always use the same noise.", Range(0, 2**64 - 1))
    precision: Precision = setting("auto", "Precision of the network's passes. auto: fp16 on a GPU, else fp32.")
    device: Any = None

    def __post_init__(self) -> None:
        if not self.strengths or any(not 0 < strength <= 10 for strength in self.strengths):
            raise InputError("A strength is not between 0 and 10: give numbers such as 0.4 0.6 0.8 1.0 1.2.")
        object.__setattr__(self, "strengths", tuple(sorted(set(self.strengths))))
        count = len(self.strengths)
        require(count <= MOST_STRENGTHS, "strengths", f"{count} numbers", f"give {MOST_STRENGTHS} or fewer")
        check_values(self)
        object.__setattr__(self, "prompt", self.prompt.strip() or PROMPT)

"""Runs a check-up: places the LoRA on the model, measures it at each strength, and recommends a strength.

In: from a LoRA to a `CheckUp`. Not in: what is measured when (`strengths`), the rule (`recommend`), words (`verdict`),
the sheet (`sheet`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from ..torch_defaults import torch_defaults
from ..training.out_of_memory import memory_in_words
from .blocks import blocks_of
from .findings import CheckUp
from .lora_file import LoraFile
from .strengths import AtCall, Strengths
from .subject import Subject
from .with_lora import lora_ready

if TYPE_CHECKING:
    from ..data.dataset import ImageSet
    from ..families.components import Components
    from .asked import Asked


@torch_defaults()
def check_up(
    components: Components,
    lora: LoraFile,
    subject: Subject,
    asked: Asked,
    *,
    images: ImageSet | None = None,
    busy: AtCall = lambda done, total: None,
) -> CheckUp:
    """Check a LoRA on its model, which is restored afterwards.

    Args:
        images: its training pictures, with captions; None: measures that need them are skipped.
        busy: called before each picture is encoded and before each network call; if it raises, the work ends.

    Raises:
        InputError: the LoRA is for another model; an invalid caption, size or precision; too little memory.
    """
    refusal = InputError("Out of memory: give the check-up a lower resolution, or free memory.")
    with memory_in_words(refusal), lora_ready(components, lora, asked.device, asked.precision) as ready:
        work = Strengths(ready, subject, asked, images, busy)
        work.measure()
        return CheckUp(
            lora=lora, placement=ready.placement, blocks=blocks_of(ready), subject=subject, source=components.source,
            points=work.points, samples=work.samples, recommendation=work.recommendation, prompts=work.prompts,
            pictures=work.pictures_used, bins=asked.bins, notes=[*components.notes, *lora.notes, *work.notes],
        )  # fmt: skip

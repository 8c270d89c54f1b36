"""The check-up in order: the LoRA is found on the model, measured at each strength, and a strength is named.

In: from a LoRA to a `CheckUp`. Not in: what is measured when (`strengths`), the rule (`recommend`), words (`verdict`),
the sheet (`sheet`).
"""

from __future__ import annotations

from ..data.dataset import ImageSet
from ..errors import InputError
from ..families.components import Components
from ..training.room import is_out_of_memory
from .blocks import blocks_of
from .findings import Asked, CheckUp
from .lora_file import LoraFile
from .strengths import Busy, Strengths
from .subject import Subject
from .with_lora import lora_ready


def check_up(
    components: Components,
    lora: LoraFile,
    subject: Subject,
    asked: Asked | None = None,
    *,
    images: ImageSet | None = None,
    busy: Busy = lambda done, total: None,
) -> CheckUp:
    """Look a LoRA over on its model, which comes back as it was.

    Args:
        images: the pictures it was trained on, with captions; None: what needs them is not measured.
        busy: called before each picture that is encoded, and each call of the network; what it raises ends the work.

    Raises:
        InputError: the LoRA is another model's; a caption, size or precision that cannot be; too little memory.
    """
    asked = asked or Asked()
    try:
        with lora_ready(components, lora, asked.device, asked.precision) as ready:
            work = Strengths(ready, subject, asked, images, busy)
            work.measure()
            return CheckUp(
                lora, ready.placement, blocks_of(ready), subject, work.points, work.recommendation,
                work.prompts.named, work.prompts.unrelated, work.pictures_used, asked.bins,
                components.source, work.samples, [*components.notes, *work.notes],
            )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("Out of memory: give the check-up a lower resolution, or free memory.") from error

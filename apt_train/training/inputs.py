"""What a step reads, encoded: pictures, captions, the learned identifier; and the prompts that drift is measured on.

In: texts and their encoders. Not in: how pictures reach the loop (`streams`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapter import Adapter
from ..sample.drift import DriftWatch, as_many
from ..sample.sampler import Sampler
from ..text.captions import preview_captions
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from .plan import Plan
from .streams import Stream


@dataclass
class Inputs:
    """The encoded pictures and captions that steps draw from."""

    subject: Stream
    preservation: Stream | None
    conditioner: Conditioner

    @property
    def identifier(self) -> Identifier | None:
        """The learned one; None: a plain word names the subject."""
        return self.conditioner.identifier

    @property
    def captions(self) -> list[str]:
        return [*self.subject.captions, *(self.preservation.captions if self.preservation else ())]


def conditioner_of(plan: Plan) -> Conditioner:
    """The run's conditioner, whose encoders are on the device, or wait for their visits to it."""
    made = Conditioner.of(plan.config, plan.components.text_encoders, plan.device)
    if plan.savings.encoders_aside:
        made.put_aside()
    else:
        for encoder in made.encoders:
            encoder.model.to(plan.device)
    return made


def drift_watch(plan: Plan, inputs: Inputs, adapter: Adapter) -> DriftWatch | None:
    """None if drift is not measured. It uses the training batch size, which is known to fit in memory."""
    config, unrelated = plan.config, plan.unrelated
    if not unrelated:
        return None
    size = (plan.side, plan.side)
    sampler = Sampler(plan.components, size, plan.device, plan.dtype, config.optimizer.batch_size)
    captions = as_many(inputs.subject.captions, len(unrelated))
    words = config.resolved_init_word if config.identifier_mode == "learned" else config.trigger
    return DriftWatch(sampler, adapter, inputs.conditioner, captions, words, unrelated)


def prepare_captions(plan: Plan, inputs: Inputs, drift: DriftWatch | None) -> None:
    """Encode the texts that never change. In word mode these are all, and the text encoders leave the device."""
    drawn = (*preview_captions(plan.config), "") if plan.config.output.preview_every else ()
    inputs.conditioner.precompute([*inputs.captions, *drawn, *(drift.texts if drift else ())])
    if plan.config.identifier_mode == "word":
        for encoder in plan.components.text_encoders:
            encoder.model.to("cpu")

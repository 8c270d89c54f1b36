"""One network, switchable between the prior and a LoRA at any strength, for measures that need not know the LoRA.

The change is merged into the weights, as hosts do it, so that every kind of file is treated the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.components import Components
from ..families.precision import resolve_dtype
from ..families.swapped import lent
from ..training.device import resolve_device
from .lora_file import LoraFile
from .placing import Placed, Placement, place


@dataclass
class WithLora:
    """`at(strength)` is a context manager; outside it the model is the prior, bit for bit.

    `originals` stay where they were, on the CPU and perhaps mapped from a file. They are never written to.
    """

    components: Components
    placement: Placement
    originals: dict[nn.Parameter, Tensor]
    device: torch.device
    dtype: torch.dtype

    @contextlib.contextmanager
    def at(self, strength: float) -> Generator[None]:
        """Inside the block the LoRA is merged at this strength; afterwards the weights are restored."""
        try:
            for item in self.placement.placed:
                for parameter, base, added in self.changes(item):
                    parameter.data = (base + strength * added).to(self.dtype)
            yield
        finally:
            for item in self.placement.placed:
                for parameter in item.parameters.values():
                    parameter.data = self.originals[parameter].to(self.device, self.dtype)

    def changes(self, item: Placed) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Each parameter that a layer of the file changes, its original and the change at strength 1, float32."""
        for of, parameter in item.parameters.items():
            base = self.originals[parameter].to(self.device, torch.float32)
            if (added := item.changes(base, of)) is not None:
                yield parameter, base, added


@contextlib.contextmanager
def lora_ready(
    components: Components, lora: LoraFile, device: str | torch.device | None, precision: str
) -> Generator[WithLora]:
    """The model on the device in this precision; afterwards it is as it was.

    InputError: the LoRA is for another model.
    """
    where = resolve_device(device)
    placement, dtype = place(lora, components), working_dtype(precision, where)
    for encoder in components.text_encoders:
        encoder.keep_table(dtype)
    with lent(components.modules):
        originals = {weight: weight.data for module in components.modules for weight in module.parameters()}
        for module in components.modules:
            module.requires_grad_(False).eval()
            nn.Module.to(module, where, dtype)  # diffusers' own `to` would warn about this intended cast
        yield WithLora(components, placement, originals, where, dtype)


def working_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a check-up. `auto`: float16 on a CUDA GPU, otherwise float32.

    In bfloat16, merging a LoRA into the weights would round much of it away (ours).
    """
    return resolve_dtype("fp16" if precision == "auto" and device.type == "cuda" else precision, device)


def check_finite(values: Tensor, strength: float) -> None:
    """InputError: the network's output is not finite at this strength."""
    if not bool(values.isfinite().all()):
        at = f"with the LoRA at strength {strength:g}: use fp32, or a lower strength"
        what = at if strength else "without the LoRA: use fp32, or another checkpoint"
        raise InputError(f"The model gives values that are not numbers {what}.")

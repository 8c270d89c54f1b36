"""Finds a LoRA file's layers on a model: what each one changes, and which have no place.

In: names -> layers, shape checks. Not in: changing the model (`with_lora`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.components import Components
from .formulas import change, kind_of, rank_of
from .lora_file import LoraFile

MOSTLY = 0.5  # if no more than this share of a file's layers is found, it is for another model (ours)


@dataclass(frozen=True)
class Placed:
    """One layer's tensors and where they apply. `part`: `unet`, or `text encoder 1` ..."""

    name: str  # in the file
    part: str
    path: str
    layer: nn.Module
    parts: dict[str, Tensor]

    @property
    def kind(self) -> str:
        return kind_of(self.parts) or ""

    @property
    def rank(self) -> int | None:
        return rank_of(self.parts)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The layer's own parameters that a file may change: `weight`, `bias`."""
        found = {of: getattr(self.layer, of, None) for of in ("weight", "bias")}
        return {of: parameter for of, parameter in found.items() if isinstance(parameter, nn.Parameter)}

    def changes(self, base: Tensor, of: str) -> Tensor | None:
        """The change to the layer's `weight` or `bias` (`of`) at strength 1, float32; None: no change."""
        if of == "bias":
            bias = self.parts.get("bias")
            return None if bias is None else bias.to(base.device, torch.float32).reshape(base.shape)
        weight = {name: tensor for name, tensor in self.parts.items() if name != "bias"}
        return change(weight, base) if kind_of(weight) else None


@dataclass(frozen=True)
class Placement:
    """`unplaced`: layers of the file that the model lacks; `unfit`: those with other shapes.

    `broken`: those with values that are not finite.
    """

    placed: list[Placed]
    unplaced: list[str]
    unfit: list[str]
    broken: list[str] = field(default_factory=list[str])

    @property
    def ranks(self) -> list[int]:
        """The distinct ranks, ascending."""
        return sorted({item.rank for item in self.placed if item.rank is not None})

    @property
    def alphas(self) -> list[float]:
        """The distinct alphas, ascending."""
        return sorted({float(item.parts["alpha"]) for item in self.placed if "alpha" in item.parts})

    @property
    def changes_text(self) -> bool:
        return any(item.part != "unet" for item in self.placed)


def place(lora: LoraFile, components: Components) -> Placement:
    """Find every layer of the file. InputError: most are not this model's, or are not finite."""
    known = dict(_known(components))
    placed: list[Placed] = []
    unplaced: list[str] = []
    unfit: list[str] = []
    broken: list[str] = []
    for name, parts in lora.layers.items():
        if name not in known:
            unplaced.append(name)
            continue
        part, path, layer = known[name]
        item = Placed(name, part, path, layer, parts)
        if not _fits(item):
            unfit.append(name)
        elif all(bool(tensor.float().isfinite().all()) for tensor in parts.values()):
            placed.append(item)
        else:
            broken.append(name)
    if len(placed) <= MOSTLY * len(lora.layers):
        if len(broken) > len(placed):
            raise InputError(
                f"{lora.name} holds layers with values that are not numbers ({len(broken)} of {len(lora.layers)}): it "
                "broke in training, so take an earlier snapshot."
            )
        raise InputError(_of_another_model(lora, components, len(placed)))
    return Placement(placed, unplaced, unfit, broken)


def _known(components: Components) -> Iterator[tuple[str, tuple[str, str, nn.Module]]]:
    """Every possible name in a file -> (part, path, layer)."""
    words = components.family.file_words
    for name, path in words.network_names(components.unet).items():
        yield name, ("unet", path, components.unet.get_submodule(path))
    encoders = components.text_encoders
    for number, encoder in enumerate(encoders, start=1):
        for name, path in words.encoder_names(encoder.model, number, len(encoders), encoder.embedding_key).items():
            yield name, (f"text encoder {number}", path, encoder.model.get_submodule(path))


def _fits(item: Placed) -> bool:
    """Whether the formulas can be computed, tried on shapes only."""
    hollow = {name: tensor if name == "alpha" else tensor.to("meta") for name, tensor in item.parts.items()}
    own = item.parameters
    if not own.keys() >= {"weight", *(item.parts.keys() & {"bias"})}:
        return False
    try:
        for of, base in own.items():
            replace(item, parts=hollow).changes(base.to("meta"), of)
    except (ValueError, RuntimeError, IndexError, TypeError):
        return False
    return True


def _of_another_model(lora: LoraFile, components: Components, found: int) -> str:
    guess = components.family.file_words.model_of(lora.layers)
    made_for = f"is made for {guess}" if guess else "is made for another model"
    fit = f"too few of its layers fit {components.source or 'the model'} ({found} of {len(lora.layers)})"
    return f"{lora.name} {made_for}: {fit}, so give the checkpoint it was trained on."

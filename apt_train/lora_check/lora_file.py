"""A LoRA file's tensors sorted by layer, and its metadata. Finding the layers on a model is up to `placing`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ..disk.json_file import parse_json
from ..disk.tensor_file import open_tensor_file
from ..errors import InputError
from ..names import embedding_file
from ..paths import expanded, one_line
from ..text.captions import learned_name
from .formulas import PARTS, kind_of

MOST_TENSORS = 100_000
_ENDS = sorted(PARTS, key=len, reverse=True)


@dataclass(frozen=True)
class LoraFile:
    """`layers`: parts (values of `formulas.PARTS`) by the layer's name in the file; `unread`: other keys.

    Every part is floating-point, of any size, and an alpha is a single number.
    """

    name: str
    layers: dict[str, dict[str, Tensor]]
    unread: list[str] = field(default_factory=list[str])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    embedding: Path | None = None  # a learned word beside the file, if any

    @property
    def class_word(self) -> str:
        """The class word in the file; empty: none."""
        return self.metadata.get("apt_class_word", "")

    @property
    def trigger(self) -> str:
        """The trigger in the file; empty: none."""
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def notes(self) -> list[str]:
        """A note if another strength is what was trained.

        diffusers writes alpha and rank into the metadata. It reads them there, while ComfyUI takes alpha for the rank.
        """
        try:
            said = parse_json(self.metadata.get("lora_adapter_metadata", "null").encode())
            rank, alpha, root = (said.get(f"unet.{name}") for name in ("r", "lora_alpha", "use_rslora"))
            scale = alpha / (math.sqrt(rank) if root else rank)
            note = (
                f"Its metadata says alpha {alpha:g} for rank {rank:g}, which diffusers reads. ComfyUI and this "
                f"check-up do not: there strength {scale:.3g} is what was trained."
            )
        except (ValueError, ArithmeticError, TypeError, AttributeError):
            return []
        has_own = any("alpha" in parts for parts in self.layers.values())
        return [] if has_own or not 0.001 < scale < 1000 or math.isclose(scale, 1) else [note]

    @property
    def dtype(self) -> str:
        """The most common dtype of its numbers."""
        count: Counter[str] = Counter()
        for parts in self.layers.values():
            for tensor in parts.values():
                count[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        return count.most_common(1)[0][0] if count else "none"


def read_lora(given: str | Path) -> LoraFile:
    """Read a safetensors file. InputError: no such file, a pickle, damaged, or no LoRA in it."""
    path = expanded(given, "The LoRA")
    file = open_tensor_file(path)
    if len(file.shapes) > MOST_TENSORS:
        raise InputError(f"{one_line(path.name)} holds {len(file.shapes)} tensors, more than any LoRA: give a LoRA.")
    made = sorted_lora(file.load(file.shapes), one_line(path.name), file.metadata)
    named_alike = path.with_name(embedding_file(path.stem))
    return replace(made, embedding=named_alike if os.path.isfile(named_alike) else word_beside(path, made.trigger))


def word_beside(path: Path, trigger: str) -> Path | None:
    """The learned word of this trigger, if its file is beside the LoRA at `path`. The trigger may be any text."""
    word = f"{learned_name(trigger) or ''}.safetensors"
    place = path.parent / word
    return place if Path(word).name == word and place != path and os.path.isfile(place) else None


def sorted_lora(tensors: Mapping[str, Tensor], name: str, metadata: Mapping[str, str] | None = None) -> LoraFile:
    """Likewise from tensors by key, as a host's wire carries them. InputError: there is no LoRA among them."""
    layers: dict[str, dict[str, Tensor]] = {}
    unread: list[str] = []
    for key, tensor in tensors.items():
        found = _split(key)
        if found is None:
            unread.append(key)
        else:
            # peft's magnitude is one per row, but on a convolution of shape (1, rows, 1, 1), as others store columns
            by_row = "lora_magnitude_vector" in key
            layers.setdefault(found[0], {})[found[1]] = tensor.reshape(-1, 1) if by_row else tensor
    for layer in [layer for layer, parts in layers.items() if kind_of(parts) is None or not _can_be_computed(parts)]:
        unread += [f"{layer}.{part}" for part in layers.pop(layer)]
    if not layers:
        raise InputError(f"{name} holds nothing that can be read as a LoRA: give a LoRA, LoHa or LoKr as .safetensors.")
    return LoraFile(name, layers, unread, dict(metadata or {}))


def _can_be_computed(parts: Mapping[str, Tensor]) -> bool:
    """Whether all parts are floats, since integers are packed in their own ways, and an alpha is a single number."""
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        return False
    return all(tensor.is_floating_point() for part, tensor in parts.items() if part != "alpha")


def _split(key: str) -> tuple[str, str] | None:
    """The layer's name and the part; None: an unknown part."""
    for end in _ENDS:
        if not key.endswith(f".{end}"):
            continue
        layer, part = key.removesuffix(f".{end}"), PARTS[end]
        if part == "diff" and layer.endswith(".bias"):  # how ComfyUI's own training names a bias
            return layer.removesuffix(".bias"), "bias"
        return layer.removesuffix(".weight"), part
    for end, part in (("_lora.down.weight", "down"), ("_lora.up.weight", "up")):  # diffusers' attention processors
        if key.endswith(end):
            return key.removesuffix(end), part
    return None

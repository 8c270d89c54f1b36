"""A LoRA's tensors sorted by layer, and what the file says of itself. Whose layers they are is `placing`'s business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..disk.tensor_file import open_tensor_file
from ..errors import InputError
from ..paths import expanded, one_line
from .formulas import PARTS, kind_of

MOST_TENSORS = 100_000
_ENDS = sorted(PARTS, key=len, reverse=True)


@dataclass(frozen=True)
class LoraFile:
    """`layers`: parts (as `formulas.PARTS` calls them) by the layer's name in the file; `unread`: other keys.

    Every part is of floats, of whatever size, and an alpha is one number.
    """

    name: str
    layers: dict[str, dict[str, Tensor]]
    unread: list[str] = field(default_factory=list[str])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    embedding: Path | None = None  # of a learned word, where one lies beside the file

    @property
    def class_word(self) -> str:
        """As the file says it; empty: it does not."""
        return self.metadata.get("apt_class_word", "")

    @property
    def trigger(self) -> str:
        """As the file says it; empty: it does not."""
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def dtype(self) -> str:
        """What most of its numbers are in."""
        count: Counter[str] = Counter()
        for parts in self.layers.values():
            for tensor in parts.values():
                count[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        return count.most_common(1)[0][0] if count else "none"


def read_lora(given: str | Path) -> LoraFile:
    """A safetensors file. InputError: no such file, a pickle, damaged, or nothing in it that is a LoRA."""
    path = expanded(given, "The LoRA")
    file = open_tensor_file(path)
    if len(file.shapes) > MOST_TENSORS:
        raise InputError(f"{one_line(path.name)} holds {len(file.shapes)} tensors, more than any LoRA: give a LoRA.")
    tensors = file.load(file.shapes)
    return sorted_lora(tensors, one_line(path.name), file.metadata, _embedding_of(path))


def sorted_lora(
    tensors: Mapping[str, Tensor], name: str, metadata: Mapping[str, str] | None = None, embedding: Path | None = None
) -> LoraFile:
    """The same of tensors by key, as a host's wire carries them. InputError: nothing in them is a LoRA."""
    layers: dict[str, dict[str, Tensor]] = {}
    unread: list[str] = []
    for key, tensor in tensors.items():
        found = _split(key)
        if found is None:
            unread.append(key)
        else:
            layers.setdefault(found[0], {})[found[1]] = tensor
    for layer in [layer for layer, parts in layers.items() if kind_of(parts) is None or not _can_be_computed(parts)]:
        unread += [f"{layer}.{part}" for part in layers.pop(layer)]
    if not layers:
        raise InputError(f"{name} holds nothing that can be read as a LoRA: give a LoRA, LoHa or LoKr as .safetensors.")
    return LoraFile(name, layers, unread, dict(metadata or {}), embedding)


def _can_be_computed(parts: Mapping[str, Tensor]) -> bool:
    """Whether its numbers are floats of any size, as whole ones are packed in ways of their own; an alpha is one."""
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        return False
    return all(tensor.is_floating_point() for part, tensor in parts.items() if part != "alpha")


def _split(key: str) -> tuple[str, str] | None:
    """The layer's name and the part; None: it is no part that is known."""
    for end in _ENDS:
        if not key.endswith(f".{end}"):
            continue
        layer, part = key.removesuffix(f".{end}"), PARTS[end]
        if part == "diff" and layer.endswith(".bias"):  # ComfyUI's own training names a bias so
            return layer.removesuffix(".bias"), "bias"
        return layer.removesuffix(".weight"), part
    for end, part in (("_lora.down.weight", "down"), ("_lora.up.weight", "up")):  # diffusers' attention processors
        if key.endswith(end):
            return key.removesuffix(end), part
    return None


def _embedding_of(path: Path) -> Path | None:
    beside = path.with_name(f"{path.stem}_embedding.safetensors")
    return beside if beside.is_file() else None

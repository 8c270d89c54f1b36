"""Which blocks of the model a LoRA changes, by how much, and how many of its ranks are in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..families.precision import in_float64
from .formulas import singular_values
from .placing import Placed
from .with_lora import WithLora

ENERGY = 0.95  # share of a change's squared norm that defines the ranks in use (ours)


@dataclass(frozen=True)
class Block:
    """A part of the model. `moved`: norm of the change at strength 1, relative to the norm of what it changes.

    `rank`: the average rank of its layers in the file. `used`: the average number of directions that hold `ENERGY` of
    the change, over the layers with a change. None if the kind has no ranks. `unchanged`: layers without a change.
    """

    name: str
    layers: int
    moved: float
    rank: float | None
    used: float | None
    unchanged: int = 0


@torch.no_grad()
def blocks_of(lora: WithLora) -> list[Block]:
    """The blocks in network order, text encoders first."""
    groups: dict[str, list[Placed]] = {}
    for item in lora.placement.placed:
        block = lora.components.network.block(item.path) if item.part == "unet" else item.part
        groups.setdefault(block, []).append(item)
    return [_measured(name, groups[name], lora) for name in sorted(groups, key=_order)]


def _measured(name: str, items: Sequence[Placed], lora: WithLora) -> Block:
    added = base = 0.0
    ranks: list[int] = []
    used: list[int] = []
    unchanged = 0
    for item in items:
        changed = 0.0
        for _, original, change in lora.changes(item):
            changed += float(in_float64(change).square().sum())  # squares may exceed float32
            base += float(in_float64(original).square().sum())
        added += changed
        unchanged += changed == 0
        if item.rank is not None:
            ranks.append(item.rank)
        values = singular_values(item.parts)
        if values is not None:
            used.append(_directions(values))
    moved = (added / base) ** 0.5 if base else 0.0
    return Block(name, len(items), moved, _mean(ranks), _mean([count for count in used if count] or used), unchanged)


def _directions(values: torch.Tensor) -> int:
    """The fewest singular directions that hold `ENERGY` of the squared norm; 0 if there is no change."""
    energy = values.double().square()
    total = float(energy.sum())
    return 0 if total == 0 else int((energy.cumsum(0) < ENERGY * total).sum()) + 1


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _order(name: str) -> tuple[int, str, int, str]:
    """Parts that a family names in its own way come last, word by word; `joint 9` before `joint 10`."""
    heads = ("text", "in", "down", "middle", "up")
    place = next((place for place, head in enumerate(heads) if name.startswith(head)), len(heads))
    return place, name.rstrip("0123456789"), len(name), name

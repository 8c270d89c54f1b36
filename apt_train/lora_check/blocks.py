"""Which blocks of the model a LoRA moves, how far, and how many of its ranks it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .formulas import singular_values
from .placing import Placed
from .with_lora import WithLora

ENERGY = 0.95  # of a change's squared norm: so much the ranks in use hold (ours)


@dataclass(frozen=True)
class Block:
    """Part of the model. `moved`: norm of the change at strength 1 over the norm of the weights that it changes.

    `rank`, `used`: mean over its layers of the rank in the file and of the directions that hold `ENERGY` of the change;
    None where the kind has none to count.
    """

    name: str
    layers: int
    moved: float
    rank: float | None
    used: float | None


@torch.no_grad()
def blocks_of(lora: WithLora) -> list[Block]:
    """In the order of the network; text encoders first."""
    groups: dict[str, list[Placed]] = {}
    for item in lora.placement.placed:
        block = lora.components.network.block(item.path) if item.part == "unet" else item.part
        groups.setdefault(block, []).append(item)
    return [_measured(name, groups[name], lora) for name in sorted(groups, key=_order)]


def _measured(name: str, items: Sequence[Placed], lora: WithLora) -> Block:
    added = base = 0.0
    ranks: list[int] = []
    used: list[int] = []
    for item in items:
        if (weight := getattr(item.layer, "weight", None)) is not None:
            original = lora.original(weight).to(lora.device, torch.float32)
            change = item.changes(original, "weight")
            if change is not None:
                added += float(change.double().square().sum())  # also of numbers whose squares exceed float32
                base += float(original.double().square().sum())
        if item.rank is not None:
            ranks.append(item.rank)
        values = singular_values(item.parts)
        if values is not None:
            used.append(_directions(values))
    return Block(name, len(items), (added / base) ** 0.5 if base else 0.0, _mean(ranks), _mean(used))


def _directions(values: torch.Tensor) -> int:
    """The fewest singular directions that hold `ENERGY` of the squared norm; 0 of no change at all."""
    energy = values.double().square()
    total = float(energy.sum())
    return 0 if total == 0 else int((energy.cumsum(0) < ENERGY * total).sum()) + 1


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _order(name: str) -> tuple[int, str]:
    heads = ("text", "in", "down", "middle", "up")
    return next(place for place, head in enumerate(heads) if name.startswith(head)), name

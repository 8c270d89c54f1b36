"""The strength to use a LoRA at, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .check_up import AtStrength


@dataclass(frozen=True)
class Recommendation:
    strength: float
    reason: str
    at_the_lowest: bool = False


def recommended(points: Sequence[AtStrength]) -> Recommendation:
    return Recommendation(1.0, "")

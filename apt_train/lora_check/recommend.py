"""The strength to use a LoRA at, by a stated rule (ours; docs/log.md says what it was tried on).

With pictures: the strength that predicts them best, where more of the LoRA begins to err again. So a LoRA of three
times the alpha gets a third of the strength. Without: the usual 1, but no more than where prompts about other things
change as much as if their prompt were left out (`MOST_SPILL`). A LoRA that exceeds this where it should be used is
overfitted. Between the strengths measured, values are interpolated; at strength 0 a LoRA does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from .findings import AtStrength

MOST_SPILL = 1.0
USUAL = 1.0
STEP = 0.05  # strengths are named in such steps

Rule = Literal["gain", "usual", "nothing"]


@dataclass(frozen=True)
class Recommendation:
    """`rule`: what named the strength; `nothing`: the LoRA changes nothing.

    `gentle`: the strength at which the spill reaches `MOST_SPILL`; None: it stays below. `open_ended`: more strength
    than was measured may do better; `below`: what to use may lie below the lowest strength that was measured.
    """

    strength: float
    rule: Rule
    spill: float  # at the usual strength, or at that of the pictures
    gentle: float | None = None
    open_ended: bool = False
    below: bool = False

    @property
    def overfitted(self) -> bool:
        """Whether it overruns prompts about other things at the strength that it was made for."""
        return self.spill > MOST_SPILL


def recommended(points: Sequence[AtStrength]) -> Recommendation:
    """For points in the order of their strengths, at least one."""
    gains = [(0.0, 0.0), *((point.strength, _gain(point)) for point in points)]
    spills = [(0.0, 0.0), *((point.strength, point.spill) for point in points)]
    if not any(spill > 0 for _, spill in spills):
        return Recommendation(USUAL, "nothing", 0.0)
    gentle = _first_at(spills, MOST_SPILL)
    if known_gain(points):
        best, lowest = _peak(gains), len(points) > 1 and max(points, key=_gain) is points[0]
        is_last = best >= points[-1].strength
        return Recommendation(_named(best), "gain", _value_at(spills, best), _rounded(gentle), is_last, lowest)
    strength = USUAL if gentle is None else min(USUAL, gentle)
    below = strength < points[0].strength
    return Recommendation(_named(strength), "usual", _value_at(spills, USUAL), _rounded(gentle), below=below)


def known_gain(points: Sequence[AtStrength]) -> bool:
    """Whether the LoRA predicts the pictures better than chance at some strength."""
    return any(point.gain is not None and point.gain.is_known for point in points)


def _gain(point: AtStrength) -> float:
    return 0.0 if point.gain is None else point.gain.mean


def _named(strength: float) -> float:
    return round(max(STEP, round(strength / STEP) * STEP), 3) if strength > STEP else round(strength, 3)


def _peak(values: Sequence[tuple[float, float]]) -> float:
    """Where the parabola through the highest value and its neighbours is highest; the last strength if that is best."""
    best = max(range(len(values)), key=lambda place: values[place][1])
    if best in (0, len(values) - 1):
        return values[best][0]
    (a, low), (b, top), (c, high) = values[best - 1 : best + 2]
    left, right = (top - low) / (b - a), (high - top) / (c - b)
    return (a + b) / 2 + (c - a) / 2 * left / (left - right) if left > right else b


def _rounded(strength: float | None) -> float | None:
    return None if strength is None else _named(strength)


def _first_at(values: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Where the line through the values first reaches the goal; None: it never does."""
    for (before, low), (after, high) in zip(values, values[1:], strict=False):
        if high >= goal > low:
            return float(np.interp(goal, (low, high), (before, after)))
    return None


def _value_at(values: Sequence[tuple[float, float]], strength: float) -> float:
    return float(np.interp(strength, [at for at, _ in values], [value for _, value in values]))

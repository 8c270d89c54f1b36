"""The strength to use a LoRA at, by a stated rule (ours; docs/log.md says what it was tried on).

With pictures: the lowest strength that reaches `ENOUGH` of the best gain on them. More strength buys little more of the
subject there, while what else changes grows with its square. Without pictures: the highest strength at which prompts
about other things change by at most `MOST_SPILL` of what leaving the prompt out would change. Between the strengths
measured both are interpolated; at strength 0 a LoRA does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .findings import AtStrength

ENOUGH = 0.9
MOST_SPILL = 0.5
STEP = 0.05  # strengths are named in such steps

Rule = Literal["gain", "spill", "calm", "nothing"]


@dataclass(frozen=True)
class Recommendation:
    """`rule`: what named the strength; `calm`: the spill is small at all of them, `nothing`: the LoRA changes nothing,
    so that the usual 1.0 stands. `spill`: at that strength.

    `open_ended`: more strength than was measured may do better; `below`: it is lower than any that was measured.
    """

    strength: float
    rule: Rule
    spill: float
    open_ended: bool = False
    below: bool = False


def recommended(points: Sequence[AtStrength]) -> Recommendation:
    """For points in the order of their strengths, at least one."""
    rule, strength = _by_gain(points) or _by_spill(points)
    named = max(STEP, round(strength / STEP) * STEP) if strength > STEP else strength
    best = max(points, key=_gain)
    rising = rule == "gain" and best is points[-1]
    return Recommendation(
        round(named, 3), rule, _spill_at(points, named), open_ended=rising, below=strength < points[0].strength
    )


def known_gain(points: Sequence[AtStrength]) -> bool:
    """Whether the LoRA predicts the pictures better than chance at some strength."""
    return any(point.gain is not None and point.gain.is_known for point in points)


def _gain(point: AtStrength) -> float:
    return 0.0 if point.gain is None else point.gain.mean


def _by_gain(points: Sequence[AtStrength]) -> tuple[Rule, float] | None:
    """None: there are no pictures, or the LoRA does not predict them better than the model without it."""
    if not known_gain(points):
        return None
    gains = [(0.0, 0.0), *((point.strength, _gain(point)) for point in points)]
    goal = ENOUGH * max(gain for _, gain in gains)
    return "gain", _first_at(gains, goal)


def _by_spill(points: Sequence[AtStrength]) -> tuple[Rule, float]:
    spills = [(0.0, 0.0), *((p.strength, p.spill) for p in points)]
    if max(spill for _, spill in spills) <= 0:
        return "nothing", 1.0
    if all(spill <= MOST_SPILL for _, spill in spills):
        return "calm", 1.0
    return "spill", _first_at(spills, MOST_SPILL)


def _first_at(values: Sequence[tuple[float, float]], goal: float) -> float:
    """Where the line through the values first reaches the goal."""
    for (before, low), (after, high) in zip(values, values[1:], strict=False):
        if high >= goal:
            return before + (after - before) * (goal - low) / (high - low) if high > low else after
    return values[-1][0]


def _spill_at(points: Sequence[AtStrength], strength: float) -> float:
    values = [(0.0, 0.0), *((p.strength, p.spill) for p in points)]
    for (before, low), (after, high) in zip(values, values[1:], strict=False):
        if strength <= after:
            return low + (high - low) * (strength - before) / (after - before)
    return values[-1][1]

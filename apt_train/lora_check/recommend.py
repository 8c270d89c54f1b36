"""The strength to use a LoRA at, by a stated rule (ours; docs/log.md says what it was tried on).

With pictures: the strength that predicts them best; beyond it errors grow again. So a LoRA with three times the alpha
gets a third of the strength. Without pictures: the usual 1, but no more than where unrelated prompts change as much as
if their text were left out. A LoRA that exceeds this limit at its intended strength is overfitted.
Values between measured strengths are interpolated; at strength 0 a LoRA does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .findings import MOST_SPILL, AtStrength, Recommendation

USUAL = 1.0
STEP = 0.05  # recommended strengths are multiples of this


def recommended(points: Sequence[AtStrength]) -> Recommendation:
    """The recommendation from at least one point, in order of strength."""
    gains = [(0.0, 0.0), *((point.strength, _gain(point)) for point in points)]
    spills = [(0.0, 0.0), *((point.strength, point.spill) for point in points)]
    if not any(spill > 0 for _, spill in spills):
        return Recommendation(USUAL, "nothing", 0.0)
    gentle = _first_at(spills, MOST_SPILL)
    if known_gain(points):
        best, lowest = _peak(gains), len(points) > 1 and max(points, key=_gain) is points[0]
        is_last = best >= points[-1].strength
        spill = _value_at(spills, best)
        return Recommendation(_named(best), "gain", spill, _rounded(gentle), open_ended=is_last, below=lowest)
    strength = USUAL if gentle is None else min(USUAL, gentle)
    below = strength < points[0].strength
    return Recommendation(_named(strength), "usual", _value_at(spills, USUAL), _rounded(gentle), below=below)


def known_gain(points: Sequence[AtStrength]) -> bool:
    """Whether at some strength the LoRA predicts the pictures better than chance."""
    return any(point.gain is not None and point.gain.is_known for point in points)


def _gain(point: AtStrength) -> float:
    return 0.0 if point.gain is None else point.gain.mean


def _named(strength: float) -> float:
    return round(max(STEP, round(strength / STEP) * STEP), 3) if strength > STEP else float(f"{strength:.2g}")


def _peak(values: Sequence[tuple[float, float]]) -> float:
    """The top of the parabola through the highest value and its neighbours; at the edge the highest value itself."""
    best = max(range(len(values)), key=lambda place: values[place][1])
    if best in (0, len(values) - 1):
        return values[best][0]
    (a, low), (b, top), (c, high) = values[best - 1 : best + 2]
    left, right = (top - low) / (b - a), (high - top) / (c - b)
    return (a + b) / 2 + (c - a) / 2 * left / (left - right) if left > right else b


def _rounded(strength: float | None) -> float | None:
    return None if strength is None else _named(strength)


def _first_at(values: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Where linear interpolation first reaches the goal; None: it never does."""
    for (before, low), (after, high) in zip(values, values[1:], strict=False):
        if high >= goal > low:
            return float(np.interp(goal, (low, high), (before, after)))
    return None


def _value_at(values: Sequence[tuple[float, float]], strength: float) -> float:
    return float(np.interp(strength, [at for at, _ in values], [value for _, value in values]))

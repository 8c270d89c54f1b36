"""When a run stops by itself before its last step (`stop`): two simple rules on the drift measured at each snapshot.

drift      Stops at the first snapshot whose drift ratio exceeds `RISE` times the run's lowest so far. The same rule
           recommends a snapshot: the last one before that rise.
settled    Stops when the model has stopped changing: from the fourth snapshot on, at the first whose distance from the
           prior on the subject's own prompts is within `SETTLED` of the distance at half its step.

Both are ours and never the default; docs/benchmark/snapshot.md measures their worth. They read only the run's own log.
So a stopped run is recognised whenever it is read again, and with another `stop` it continues bit for bit. They cannot
see likeness.

In: the rules, and the reason in words. Not in: measuring (`sample.drift`), stopping (`loop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..config import Stop
from ..disk.json_file import is_object
from ..verdict.recommend import not_risen
from ..verdict.run_summary import RISE

SETTLED = 0.1  # relative to the distance at half the step
FEWEST = {"drift": 2, "settled": 4}  # snapshots needed before a rule applies


@dataclass(frozen=True)
class Ending:
    """The step at which a rule ends the run, the reason, and the snapshot to look at first."""

    step: int
    reason: str
    recommended: int


def ending(stop: Stop, measured: Sequence[Mapping[str, Any]]) -> Ending | None:
    """Where a run ends; None: not yet. `measured`: `step`, `subject` and `ratio` per snapshot, in order of step."""
    rule = {"drift": _risen, "settled": _settled}.get(stop)
    if rule is None:
        return None
    prefixes = (measured[: count + 1] for count in range(len(measured)))
    return next((found for seen in prefixes if (found := rule(seen)) is not None), None)


def ended_by_itself(found: Ending, total: int, at: int | None = None) -> str:
    """The sentence for the user. `at`: the step the run has reached; None: the step it ended at."""
    look = f"Look first at the snapshot of step {found.recommended}. To train on, set stop to never."
    if at is None or at == found.step:
        return f"The run ended by itself at step {found.step} of {total}: {found.reason}. {look}"
    return (
        f"The run would have ended by itself at step {found.step} of {total}: {found.reason}. It had trained on to "
        f"step {at} by then, so its LoRA is that of step {at}. {look}"
    )


def measured_in(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a log that `ending` reads."""
    return [{"step": line["step"], **drift} for line in lines if _is_measured(drift := line.get("drift"))]


def _is_measured(drift: Any) -> TypeGuard[dict[str, Any]]:
    return is_object(drift) and all(isinstance(drift.get(name), float) for name in ("subject", "ratio"))


def _risen(seen: Sequence[Mapping[str, Any]]) -> Ending | None:
    now, ratios = seen[-1], [item["ratio"] for item in seen]
    kept = seen[not_risen(ratios)[-1]]["step"]
    if kept == now["step"]:
        return None
    reason = f"the drift ratio is {now['ratio']:.2f}, more than {RISE:g} times its lowest of {min(ratios):.2f}"
    return Ending(now["step"], reason, kept)


def _settled(seen: Sequence[Mapping[str, Any]]) -> Ending | None:
    now = seen[-1]
    before = [item for item in seen if 2 * item["step"] <= now["step"]]
    if len(seen) < FEWEST["settled"] or not before or not before[-1]["subject"] > 0:
        return None
    change = abs(now["subject"] / before[-1]["subject"] - 1)
    if change > SETTLED:
        return None
    reason = f"since step {before[-1]['step']} its distance from the prior has changed by {change:.0%}"
    return Ending(now["step"], reason, now["step"])

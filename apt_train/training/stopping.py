"""When a run ends by itself before its last step (`stop`): two plain rules on the drift that every snapshot measures.

drift      At the first snapshot whose drift ratio is more than `RISE` times the lowest of the run until then. That is
           the rule by which a snapshot is recommended; the one recommended is the last from before.
settled    At the first snapshot, the fourth or later, that is as far from the prior on the subject's own prompts as the
           snapshot at half its step was, within `SETTLED`: the model has learned what it learns.

Both are ours and never the default; docs/benchmark/snapshot.md has what they are worth. They look at nothing but the
run's own log, so a run that has ended by itself is known as such whenever it is read again, and with another `stop` it
goes on bit for bit. What they cannot see is likeness.

In: the rules, and their reason in words. Not in: measuring (`sample.drift`), ending (`loop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Stop
from ..disk.json_file import is_object
from ..verdict.run_summary import RISE

SETTLED = 0.1  # of the distance at half the step
FEWEST = 4  # snapshots measured before `settled` may speak


@dataclass(frozen=True)
class Ending:
    """The step that a run ends at by itself, why, and the snapshot to look at first."""

    step: int
    reason: str
    recommended: int


def ending(stop: Stop, measured: Sequence[Mapping[str, Any]]) -> Ending | None:
    """Where a run ends; None: not yet. `measured`: `step`, `subject` and `ratio` of each snapshot, rising in step."""
    rule = {"drift": _risen, "settled": _settled}.get(stop)
    if rule is None:
        return None
    prefixes = (measured[: count + 1] for count in range(len(measured)))
    return next((found for seen in prefixes if (found := rule(seen)) is not None), None)


def ended_by_itself(found: Ending, total: int, at: int | None = None) -> str:
    """The sentence for the user. `at`: the step that the run stands at; None: the one that it ended at."""
    look = f"Look first at the snapshot of step {found.recommended}. To train on, set stop to never."
    if at is None or at == found.step:
        return f"The run ended by itself at step {found.step} of {total}: {found.reason}. {look}"
    return (
        f"The run would have ended by itself at step {found.step} of {total}: {found.reason}. It had trained on to "
        f"step {at} by then, so its LoRA is that of step {at}. {look}"
    )


def measured_in(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `ending` reads, out of a log's lines."""
    drifts = [(line["step"], line.get("drift")) for line in lines]
    whole = [(step, drift) for step, drift in drifts if is_object(drift) and _has_numbers(drift)]
    return [{"step": step, **drift} for step, drift in whole]


def _has_numbers(drift: Mapping[str, Any]) -> bool:
    return all(isinstance(drift.get(name), float) for name in ("subject", "ratio"))


def _risen(seen: Sequence[Mapping[str, Any]]) -> Ending | None:
    lowest, kept = float("inf"), seen[0]["step"]
    for item in seen:
        lowest = min(lowest, item["ratio"])
        if item["ratio"] <= RISE * lowest:
            kept = item["step"]
    now = seen[-1]
    if kept == now["step"]:
        return None
    reason = f"the drift ratio is {now['ratio']:.2f}, more than {RISE:g} times its lowest of {lowest:.2f}"
    return Ending(now["step"], reason, kept)


def _settled(seen: Sequence[Mapping[str, Any]]) -> Ending | None:
    now = seen[-1]
    before = [item for item in seen if 2 * item["step"] <= now["step"]]
    if len(seen) < FEWEST or not before or not before[-1]["subject"] > 0:
        return None
    change = abs(now["subject"] / before[-1]["subject"] - 1)
    if change > SETTLED:
        return None
    reason = f"since step {before[-1]['step']} its distance from the prior has changed by {change:.0%}"
    return Ending(now["step"], reason, now["step"])

"""A run's curves as plain data, thinned out for a screen; readable while the run still writes its log.

In: log.jsonl -> points. Not in: their meaning (`verdict.run_summary`), drawing them, requesting them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..names import LOG
from ..wording import bin_names
from .config_file import read_config
from .log import read_log, terms_of

MOST_POINTS = 500

Point = dict[str, Any]


def run_curves(folder: Path, after: int = 0) -> dict[str, Any]:
    """`total` steps, the last logged `step`, the noise levels of the `bins` in words, and the `points` since a step.

    A point is `{step, loss, gamma, drift_ratio}` plus the loss terms by name; non-finite values are null. If there are
    more than `MOST_POINTS`, neighbours are merged: mean losses, last step and gamma, last measured drift ratio. The
    last step is always kept on its own.
    InputError: the folder holds no run, or invalid settings.
    """
    config = read_config(folder).settings
    lines = read_log(folder / LOG, config.apt.bins).lines
    return {
        "total": config.steps,
        "step": lines[-1]["step"] if lines else 0,
        "bins": bin_names(config.apt.bins),
        "points": thin_out([point_of(line) for line in lines if line["step"] > after], MOST_POINTS),
    }


def point_of(line: dict[str, Any]) -> Point:
    """One step as a point, from its line in the log (`StepEvent.log_line`)."""
    gamma = [_number(value, 4) for value in line.get("gamma") or ()]
    terms = {name: _number(value, 6) for name, value in {"loss": line.get("loss"), **terms_of(line)}.items()}
    drift: dict[str, Any] = line.get("drift") or {}
    return {"step": line["step"], **terms, "gamma": gamma, "drift_ratio": _number(drift.get("ratio"), 4)}


def thin_out(points: list[Point], most: int) -> list[Point]:
    """At most `most` (2 or more) points, each merged from about equally many steps; the last step stays on its own."""
    if len(points) <= most:
        return points
    blocks, before = most - 1, len(points) - 1
    ends = [round(block * before / blocks) for block in range(blocks + 1)]
    return [*(_together(points[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)), points[-1]]


def _together(block: list[Point]) -> Point:
    ratios = [point["drift_ratio"] for point in block if point["drift_ratio"] is not None]
    terms = dict.fromkeys(name for point in block for name in point if name not in ("step", "gamma", "drift_ratio"))
    means = {name: _mean([point.get(name) for point in block]) for name in terms}
    return {**block[-1], **means, "drift_ratio": ratios[-1] if ratios else None}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _number(sum(known) / len(known), 6) if known else None


def _number(value: Any, digits: int) -> float | None:
    """The number rounded to this many significant digits; None if it is not finite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(f"{value:.{digits}g}") if is_number and -1e308 < value < 1e308 else None

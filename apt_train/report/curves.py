"""A run's curves as plain data, few enough points for a screen, also while the run still writes its log.

In: log.jsonl -> points. Not in: what they mean (`run_summary`), drawing, who asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..run_folder import CONFIG, LOG, read_config
from .run_summary import bin_edges

TERMS = ("loss", "denoising", "stabilization", "alignment")
MOST_POINTS = 500

# A page asks several times a second, and a folder may come from anyone: what is read of it has an end.
MOST_CONFIG = 4 << 20  # bytes
MOST_LOG = 64 << 20  # bytes, the newest ones: 100,000 steps and more
MOST_LINE = 1 << 20  # bytes
MOST_LINES, MOST_READ, MOST_BROKEN = 1_000_000, 50_000, 10_000  # passed; parsed; left out as unreadable
MOST_BINS, MOST_TIMESTEPS, MOST_STEPS = 1000, 1_000_000, 1_000_000_000

Point = dict[str, Any]


def run_curves(folder: Path, after: int = 0, most: int = MOST_POINTS) -> dict[str, Any]:
    """`total` steps, the last logged `step`, the `bins`' first and last timesteps, and the `points` after a step.

    A point is `{step, loss, denoising, stabilization, alignment, gamma, drift_ratio}`, what is no number null. Of more
    than `most` points neighbours run together: their mean loss, the last one's step and gamma, the last drift ratio
    that was measured; the last step is there as it is.
    InputError: the folder holds no run, or settings that no run has.
    """
    total, bins, num_timesteps = _settings(folder)
    points, step = _points(folder / LOG, after)
    return {"total": total, "step": step, "bins": timestep_bins(bins, num_timesteps), "points": thin_out(points, most)}


def _settings(folder: Path) -> tuple[int, int, int]:
    """Steps planned, bins, timesteps of the noise schedule."""
    file = folder / CONFIG
    if file.is_file() and file.stat().st_size > MOST_CONFIG:
        raise InputError(f"{CONFIG} of {folder.name} is too large to be one of ours: restore it.")
    stored = read_config(folder)
    config = stored.get("config")
    apt = config.get("apt") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(apt, dict):
        raise InputError(f"{CONFIG} of {folder.name} holds no settings of a training run: restore it.")
    return (
        _whole(folder, "steps", config.get("steps"), MOST_STEPS),
        _whole(folder, "bins", apt.get("bins"), MOST_BINS),
        _whole(folder, "num_timesteps", stored.get("num_timesteps", 1000), MOST_TIMESTEPS),
    )


def _whole(folder: Path, name: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{CONFIG} of {folder.name} has no whole number from 1 to {most} as {name}: restore it.")
    return value


def timestep_bins(bins: int, num_timesteps: int) -> list[list[int]]:
    """First and last timestep of every bin, as JSON has them."""
    return [list(edges) for edges in bin_edges(bins, num_timesteps)]


def point_of(line: dict[str, Any]) -> Point:
    """One step, from its line in the log (`StepEvent.log_line`)."""
    gamma = [_number(value, 4) for value in islice(line.get("gamma") or (), MOST_BINS)]
    terms = {term: _number(line.get(term), 6) for term in TERMS}
    ratio = (line.get("drift") or {}).get("ratio")
    return {"step": line["step"], **terms, "gamma": gamma, "drift_ratio": _number(ratio, 4)}


def thin_out(points: list[Point], most: int) -> list[Point]:
    """At most `most` (2 or more) points, each of as many steps as its neighbours; the last step stays alone."""
    if len(points) <= most:
        return points
    blocks, before = most - 1, len(points) - 1
    ends = [round(block * before / blocks) for block in range(blocks + 1)]
    return [*(_together(points[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)), points[-1]]


def _together(block: list[Point]) -> Point:
    ratios = [point["drift_ratio"] for point in block if point["drift_ratio"] is not None]
    means = {term: _mean([point[term] for point in block]) for term in TERMS}
    return {**block[-1], **means, "drift_ratio": ratios[-1] if ratios else None}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _number(sum(known) / len(known), 6) if known else None


def _points(log: Path, after: int) -> tuple[list[Point], int]:
    """The log's steps after a step, and its last one (0: none).

    Read from the end, so that asking for the newest costs little. A line that cannot be read, as the one being written,
    is left out, and so is one whose step does not come before the one after it.
    """
    points: list[Point] = []
    last, next_step = 0, MOST_STEPS + 1
    for point in _newest_points(log):
        if not 1 <= point["step"] < next_step:
            continue
        next_step, last = point["step"], last or point["step"]
        if point["step"] <= after:
            break
        points.append(point)
    return points[::-1], last


def _newest_points(log: Path) -> Iterator[Point]:
    """From the end of the log to its beginning; of a very long one every so manieth step, and those with a drift."""
    data = _newest_bytes(log)
    every = 1 + data.count(b"\n") // MOST_READ
    read = broken = 0
    for number, line in enumerate(islice(_from_the_end(data), MOST_LINES)):
        if number % every and b'"drift"' not in line:
            continue
        try:
            point = point_of(json.loads(line))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            point = None
        read, broken = read + 1, broken + (point is None)
        if read > 2 * MOST_READ or broken > MOST_BROKEN:
            return
        if point is not None and type(point["step"]) is int:
            yield point


def _newest_bytes(log: Path) -> bytes:
    """Of a log longer than `MOST_LOG` its end, from the beginning of a line."""
    if not log.is_file():
        return b""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MOST_LOG))
        data = file.read(MOST_LOG)
    return data[data.find(b"\n") + 1 :] if size > MOST_LOG else data


def _from_the_end(data: bytes) -> Iterator[bytes]:
    """Lines, the last one first; one that is too long is empty."""
    end = len(data)
    while end >= 0:
        start = data.rfind(b"\n", 0, end) + 1
        yield data[start:end] if end - start <= MOST_LINE else b""
        end = start - 1


def _number(value: Any, digits: int) -> float | None:
    """Rounded to so many significant digits; None for what is no finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(f"{value:.{digits}g}") if is_number and -1e308 < value < 1e308 else None

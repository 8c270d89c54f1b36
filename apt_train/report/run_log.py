"""Reading a run's `log.jsonl` back as arrays.

In: the lines' checks and the curves' smoothing. Not in: what the numbers mean (`run_summary`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float64]

DRIFT = ("subject", "unrelated", "ratio")
TERMS = ("loss", "denoising", "stabilization", "alignment", "prior_preservation")


@dataclass(frozen=True)
class RunLog:
    """S steps of a run; a number that a step did not compute is NaN."""

    step: NDArray[np.int64]  # (S,), rising, from 1
    terms: dict[str, Floats]  # each of TERMS (S,), raw: before weights and 1 - gamma; `loss` is the weighted total
    grad_norm: Floats  # (S,), before clipping
    timesteps: list[list[int]]  # of each step's samples
    gamma: Floats  # (S, bins); (S, 0) where the run logged none
    balance_step: NDArray[np.int64]  # (K,) the steps whose gradient was measured term by term
    balance: dict[str, Floats]  # gradient norm of each term (K,)
    drift_step: NDArray[np.int64]  # (D,) the steps at which drift was measured
    drift: dict[str, Floats]  # from the prior, each of DRIFT (D,)
    truncated: bool = False  # the last line was cut off, as after a crash

    def __len__(self) -> int:
        return len(self.step)

    def until(self, step: int) -> RunLog:
        """The same log up to a step. InputError: it holds none that early."""
        kept, measured, drifted = (steps <= step for steps in (self.step, self.balance_step, self.drift_step))
        if not kept.any():
            raise InputError(f"The log holds no step up to {step}: ask for a later one.")
        return RunLog(
            step=self.step[kept],
            terms={name: values[kept] for name, values in self.terms.items()},
            grad_norm=self.grad_norm[kept],
            timesteps=self.timesteps[: int(kept.sum())],
            gamma=self.gamma[kept],
            balance_step=self.balance_step[measured],
            balance={name: values[measured] for name, values in self.balance.items()},
            drift_step=self.drift_step[drifted],
            drift={name: values[drifted] for name, values in self.drift.items()},
            truncated=self.truncated and bool(kept.all()),
        )


def read_log(path: Path) -> RunLog:
    """The log at `path`. A cut last line is left out; any other unreadable line is an InputError."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): give the folder of a training run.") from None
    records: dict[int, dict[str, Any]] = {}
    truncated = False
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records[record["step"]] = record
        elif number == len(lines):
            truncated = True
        elif line.strip():
            raise InputError(f"{path.name} line {number} is not a step of a training log: mend or remove that line.")
    if not records:
        raise InputError(f"{path.name} holds no finished step: train at least one step before asking for a report.")
    return _columns([records[step] for step in sorted(records)], path.name, truncated)


def block_means(values: Floats, most: int) -> Floats:
    """(S, ...) -> (at most `most`, ...): means of equal runs of steps, NaN left out of them."""
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).round().astype(int)
    return np.stack([_mean(values[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)])


def moving_average(values: Floats, window: int) -> Floats:
    """Centred mean over `window` steps (S,), NaN left out, shorter at the ends; NaN where nothing was computed."""
    known = np.isfinite(values)
    reach = max(0, (window - 1) // 2)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    held = count[high] - count[low]
    return np.where(held > 0, (total[high] - total[low]) / np.maximum(held, 1), np.nan)


def _mean(block: Floats) -> Floats:
    known = np.isfinite(block)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, block, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _parse(line: bytes) -> dict[str, Any] | None:
    """One step as logged, or None where the line is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or "loss" not in record:
        return None
    numbers = [record.get(name) for name in (*TERMS, "grad_norm")]
    lists = [record.get("timestep"), record.get("gamma")]
    parts = [record.get("grad_norm_terms"), record.get("drift")]
    sound = all(_is_number(value) for value in numbers)
    sound &= all(isinstance(items, list) and all(_is_number(item) for item in items) for items in lists)
    sound &= all(
        part is None or (isinstance(part, dict) and all(_is_number(value) for value in part.values())) for part in parts
    )
    return record if sound else None


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _columns(records: list[dict[str, Any]], name: str, truncated: bool) -> RunLog:
    if len({len(record["gamma"]) for record in records}) != 1:
        raise InputError(f"{name} changes its number of timestep bins on the way: it mixes two runs, report on one.")
    measured = [record for record in records if record.get("grad_norm_terms")]
    drifted = [record for record in records if record.get("drift")]
    parts = list(dict.fromkeys(part for record in measured for part in record["grad_norm_terms"]))
    return RunLog(
        step=np.array([record["step"] for record in records], dtype=np.int64),
        terms={term: _floats([record.get(term) for record in records]) for term in TERMS},
        grad_norm=_floats([record.get("grad_norm") for record in records]),
        timesteps=[[int(t) for t in record["timestep"] if t is not None] for record in records],
        gamma=np.array([record["gamma"] for record in records], dtype=np.float64),
        balance_step=np.array([record["step"] for record in measured], dtype=np.int64),
        balance={part: _floats([record["grad_norm_terms"].get(part) for record in measured]) for part in parts},
        drift_step=np.array([record["step"] for record in drifted], dtype=np.int64),
        drift={name: _floats([record["drift"].get(name) for record in drifted]) for name in DRIFT},
        truncated=truncated,
    )


def _floats(values: list[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

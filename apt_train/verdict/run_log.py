"""A run's log as arrays.

In: the columns, and smoothing of curves. Not in: which lines of the file count (`run.log`), what the numbers mean
(`run_summary`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..palette import Legend, legends_of
from ..run.log import Line, Log, numbers_of, read_log

Floats = NDArray[np.float64]

DRIFT = ("subject", "unrelated", "ratio")


@dataclass(frozen=True)
class RunLog:
    """S steps of a run; a number that was not computed in a step is NaN."""

    step: NDArray[np.int64]  # (S,), ascending, from 1
    terms: dict[str, Floats]  # each (S,), raw: before weights and 1 - gamma; `loss`, the first, is the weighted total
    numbers: dict[str, Floats]  # each (S,), other numbers logged by name
    legends: dict[str, Legend]  # of each term and number
    grad_norm: Floats  # (S,), before clipping
    levels: list[list[float]]  # per step, the noise levels of its samples, 0 clean, 1 pure noise
    gamma: Floats  # (S, bins); (S, 0) if the run logged none
    balance_step: NDArray[np.int64]  # (K,) the steps whose gradient was measured term by term
    balance: dict[str, Floats]  # gradient norm of each term (K,)
    drift_step: NDArray[np.int64]  # (D,) the steps at which drift was measured
    drift: dict[str, Floats]  # from the prior, each of DRIFT (D,)
    truncated: bool = False  # the last line was cut off, as after a crash
    left_out: list[int] = field(default_factory=list[int])  # numbers of the lines that are not a step of this run

    def __len__(self) -> int:
        return len(self.step)


def log_arrays(
    path: Path,
    bins: int | None = None,
    legends: Mapping[str, Legend] | None = None,
    until: int | None = None,
    num_timesteps: int = 1000,
) -> RunLog:
    """The log at `path`; `until`: the last step wanted.

    `bins`, `legends` of the terms, `num_timesteps`: from the run's `config.json`.
    InputError: there is no log, or no step in it.
    """
    if not path.exists():
        raise InputError(f"{path.name} cannot be read, as it is missing: give the folder of a training run.")
    log = read_log(path, bins)
    if not log.lines:
        raise InputError(f"{path.name} holds no finished step: train at least one step before asking for a report.")
    lines = [line for line in log.lines if until is None or line["step"] <= until]
    if not lines:
        raise InputError(f"The log holds no step up to {until}: ask for a later one.")
    kept = replace(log, lines=lines, cut=log.cut and len(lines) == len(log.lines))
    return _columns(kept, legends or {}, num_timesteps)


def block_means(values: Floats, most: int) -> Floats:
    """(S, ...) -> (at most `most`, ...): means over equally long blocks of steps, ignoring NaN."""
    if len(values) <= most:
        return values
    known, starts = np.isfinite(values), np.round(np.linspace(0, len(values), most + 1))[:-1].astype(int)
    return _means(*(np.add.reduceat(part, starts, dtype=np.float64) for part in (np.where(known, values, 0.0), known)))


def moving_average(values: Floats, window: int) -> Floats:
    """Centred mean over `window` steps (S,), ignoring NaN, shorter at the ends; NaN if nothing was computed."""
    known, reach, at = np.isfinite(values), max(0, (window - 1) // 2), np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, values, 0.0), known)]
    return _means(*(sum_to[high] - sum_to[low] for sum_to in sums))


def _means(total: Floats, count: Floats) -> Floats:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _columns(log: Log, legends: Mapping[str, Legend], num_timesteps: int) -> RunLog:
    records, terms, numbers = log.lines, log.terms(), log.numbers()
    measured = [record for record in records if record.get("grad_norm_terms")]
    drifted = [record for record in records if record.get("drift")]
    parts = list(dict.fromkeys(part for record in measured for part in record["grad_norm_terms"] if part in terms))
    return RunLog(
        step=np.array([record["step"] for record in records], dtype=np.int64),
        terms={name: _floats([record.get(name) for record in records]) for name in ("loss", *terms)},
        numbers={name: _floats([numbers_of(record).get(name) for record in records]) for name in numbers},
        legends=legends_of([*terms, *numbers], legends),
        grad_norm=_floats([record.get("grad_norm") for record in records]),
        levels=[_levels(record, num_timesteps) for record in records],
        gamma=np.array([record["gamma"] for record in records], dtype=np.float64),
        balance_step=np.array([record["step"] for record in measured], dtype=np.int64),
        balance={part: _floats([record["grad_norm_terms"].get(part) for record in measured]) for part in parts},
        drift_step=np.array([record["step"] for record in drifted], dtype=np.int64),
        drift={name: _floats([record["drift"].get(name) for record in drifted]) for name in DRIFT},
        truncated=log.cut,
        left_out=log.left_out,
    )


def _levels(record: Line, num_timesteps: int) -> list[float]:
    """Older versions logged only the timesteps; their schedules had evenly spaced levels."""
    logged: list[float | None] = record.get("level") or [t / num_timesteps for t in record["timestep"] if t is not None]
    return [level for level in logged if level is not None]


def _floats(values: list[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

"""A run's log as arrays.

In: the columns and the curves' smoothing. Not in: which lines of the file count (`run.log`), what the numbers mean
(`run_summary`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..run import log as log_file
from .palette import Look, looks_of

Floats = NDArray[np.float64]

DRIFT = ("subject", "unrelated", "ratio")


@dataclass(frozen=True)
class RunLog:
    """S steps of a run; a number that a step did not compute is NaN."""

    step: NDArray[np.int64]  # (S,), rising, from 1
    terms: dict[str, Floats]  # each (S,), raw: before weights and 1 - gamma; `loss`, the first, is the weighted total
    looks: dict[str, Look]  # of each term
    grad_norm: Floats  # (S,), before clipping
    timesteps: list[list[int]]  # of each step's samples
    gamma: Floats  # (S, bins); (S, 0) where the run logged none
    balance_step: NDArray[np.int64]  # (K,) the steps whose gradient was measured term by term
    balance: dict[str, Floats]  # gradient norm of each term (K,)
    drift_step: NDArray[np.int64]  # (D,) the steps at which drift was measured
    drift: dict[str, Floats]  # from the prior, each of DRIFT (D,)
    truncated: bool = False  # the last line was cut off, as after a crash
    left_out: list[int] = field(default_factory=list)  # numbers of the lines that are no step of this run

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
            looks=self.looks,
            grad_norm=self.grad_norm[kept],
            timesteps=self.timesteps[: int(kept.sum())],
            gamma=self.gamma[kept],
            balance_step=self.balance_step[measured],
            balance={name: values[measured] for name, values in self.balance.items()},
            drift_step=self.drift_step[drifted],
            drift={name: values[drifted] for name, values in self.drift.items()},
            truncated=self.truncated and bool(kept.all()),
            left_out=self.left_out,
        )


def read_log(path: Path, bins: int | None = None, looks: Mapping[str, Look] = MappingProxyType({})) -> RunLog:
    """The log at `path`; `bins`, `looks` of the terms: as the run's `config.json` says.

    InputError: there is none, or no step in it.
    """
    if not path.exists():
        raise InputError(f"{path.name} cannot be read, as it is missing: give the folder of a training run.")
    log = log_file.read_log(path, bins)
    if not log.lines:
        raise InputError(f"{path.name} holds no finished step: train at least one step before asking for a report.")
    return _columns(log, looks)


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


def _columns(log: log_file.Log, looks: Mapping[str, Look]) -> RunLog:
    records, terms = log.lines, log.terms()
    measured = [record for record in records if record.get("grad_norm_terms")]
    drifted = [record for record in records if record.get("drift")]
    parts = list(dict.fromkeys(part for record in measured for part in record["grad_norm_terms"] if part in terms))
    return RunLog(
        step=np.array([record["step"] for record in records], dtype=np.int64),
        terms={name: _floats([record.get(name) for record in records]) for name in ("loss", *terms)},
        looks=looks_of(terms, looks),
        grad_norm=_floats([record.get("grad_norm") for record in records]),
        timesteps=[[int(t) for t in record["timestep"] if t is not None] for record in records],
        gamma=np.array([record["gamma"] for record in records], dtype=np.float64),
        balance_step=np.array([record["step"] for record in measured], dtype=np.int64),
        balance={part: _floats([record["grad_norm_terms"].get(part) for record in measured]) for part in parts},
        drift_step=np.array([record["step"] for record in drifted], dtype=np.int64),
        drift={name: _floats([record["drift"].get(name) for record in drifted]) for name in DRIFT},
        truncated=log.cut,
        left_out=log.left_out,
    )


def _floats(values: list[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

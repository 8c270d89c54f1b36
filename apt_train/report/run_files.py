"""A run's folder read back: its settings, its log, its snapshots.

In: reading and the refusal of what cannot be read. Not in: the log's own lines (`run_log`), what they mean
(`run_summary`), writing (`write`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..config import TrainConfig
from ..errors import InputError
from ..notices import Notice, read_notices
from ..run_folder import snapshot_steps
from .run_log import RunLog, read_log
from .run_summary import Summary, summarize


@dataclass(frozen=True)
class RunRecord:
    """What a run left in its folder."""

    config: TrainConfig
    num_timesteps: int  # of the noise schedule
    log: RunLog
    snapshots: list[int]  # steps that have one, rising
    notices: list[Notice] = field(default_factory=list)  # what the user was told

    @cached_property
    def summary(self) -> Summary:
        """The run in numbers."""
        return summarize(self.log, self.config, num_timesteps=self.num_timesteps, snapshots=self.snapshots)


def read_run(folder: Path, until: int | None = None) -> RunRecord:
    """Read a run's folder, up to the step `until` where one is given. InputError: it holds no readable run."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the output folder of a training run.")
    config, num_timesteps = _read_config(folder / "config.json")
    log, snapshots, notices = read_log(folder / "log.jsonl"), snapshot_steps(folder), read_notices(folder)
    if until is not None:
        log, snapshots = log.until(until), [step for step in snapshots if step <= until]
        notices = [notice for notice in notices if notice.step <= until]
    return RunRecord(config, num_timesteps, log, snapshots, notices)


def _read_config(path: Path) -> tuple[TrainConfig, int]:
    """The run's settings and its noise schedule's length (1000 where the file does not say)."""
    try:
        stored = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror}): give the output folder of a training run."
        ) from None
    except ValueError:
        raise InputError(f"{path.name} is not readable JSON: restore it, a report needs the run's settings.") from None
    values = stored.get("config") if isinstance(stored, dict) else None
    if not isinstance(values, dict):
        raise InputError(f"{path.name} holds no settings of a training run: give the output folder of one.")
    try:
        config = TrainConfig.from_dict(values)
    except (TypeError, AttributeError):
        raise InputError(f"{path.name} holds settings of the wrong kind: restore it as the run wrote it.") from None
    count = stored.get("num_timesteps", 1000)
    return config, count if isinstance(count, int) and count > 0 else 1000

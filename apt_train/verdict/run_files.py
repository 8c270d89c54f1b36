"""Reads a run's folder back: its settings, its log, its snapshots.

In: what a report needs from it. Not in: the files' own readers (`run`), the log as arrays (`run_log`), its meaning
(`run_summary`), writing (`report.write`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..config import TrainConfig
from ..errors import InputError
from ..events import NoticeEvent
from ..names import LOG, snapshot_steps
from ..run.config_file import read_config
from ..run.notices import read_notices
from .run_log import RunLog, log_arrays
from .run_summary import Summary, summarize


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its folder."""

    config: TrainConfig
    log: RunLog
    snapshots: list[int]  # steps that have one, ascending
    notices: list[NoticeEvent] = field(default_factory=list[NoticeEvent])  # all notices of the run
    preset: str = ""  # the preset the settings came from

    @cached_property
    def summary(self) -> Summary:
        """The run in numbers."""
        return summarize(self.log, self.config, snapshots=self.snapshots)


def read_run(folder: Path, until: int | None = None) -> RunRecord:
    """Read a run's folder, up to the step `until` if given. InputError: it holds no readable run."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the output folder of a training run.")
    saved = read_config(folder)
    config = saved.settings
    log = log_arrays(folder / LOG, config.apt.bins, saved.legends, until, saved.num_timesteps)
    snapshots = [step for step in snapshot_steps(folder) if until is None or step <= until]
    notices = [notice for notice in read_notices(folder) if until is None or notice.step <= until]
    return RunRecord(config, log, snapshots, notices, saved.preset)

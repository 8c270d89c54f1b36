"""Runs a grid's missing units, several at a time, each in a process with one thread."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from apt_train.errors import InputError

from .grid import Grid, Unit
from .store import missing, write_unit
from .task import Task
from .unit import run_unit

MakeTask = Callable[[], Task]
_TASKS: dict[str, Task] = {}  # of this worker process: the model is loaded once


def run_grid(make_task: MakeTask, grid: Grid, folder: Path, workers: int) -> None:
    """Run and write every unit that has no file. `make_task` is called in each worker, so it must pickle.

    InputError, at the end: names the units that failed. The others have been run.
    """
    todo, started, failed = missing(folder, grid), time.monotonic(), []
    print(f"{len(grid.units()) - len(todo)} of {len(grid.units())} units are there, {len(todo)} to run", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            runs = {pool.submit(_run_one, make_task, grid, unit, folder): unit for unit in todo}
            for done, run in enumerate(as_completed(runs), start=1):
                if (error := run.exception()) is not None:
                    print(f"{runs[run].name} failed: {error}", file=sys.stderr, flush=True)
                    failed.append(runs[run].name)
                minutes = (time.monotonic() - started) / 60
                left = minutes / done * (len(todo) - done)
                print(f"{done}/{len(todo)} {runs[run].name}: {minutes:.0f} min, about {left:.0f} left", flush=True)
        except BaseException:
            for worker in multiprocessing.active_children():  # they would continue alone, and half a unit is not kept
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise InputError(f"{len(failed)} units failed ({', '.join(failed)}): see the reasons above, then run it again.")


def _run_one(make_task: MakeTask, grid: Grid, unit: Unit, folder: Path) -> None:
    torch.set_num_threads(1)  # the trainer's bit-exactness holds at a fixed thread count
    task = _TASKS.get("one") or _TASKS.setdefault("one", make_task())
    write_unit(folder, grid, unit, run_unit(task, grid, unit))

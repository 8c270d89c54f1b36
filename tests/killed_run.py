"""A process that trains and is killed: what `tests/test_kill.py` runs, so that each kill costs no imports.

`main` reads orders from stdin, one JSON a line, and forks a child for each. A child trains a tiny
run and tells the moments it passes, each time it opens, moves or removes a file of the run, and at each event. At the
moment that its order names it kills itself, as `kill -9` would. The report's figures are written blank, as drawing them
takes longer than all else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from apt_train.events import BusyEvent, Event
from apt_train.run.folder import RunFolder
from tests.blank_figures import leave_blank
from tests.tiny import tiny_components
from tests.training import pictures, run

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "snapshot_every": 2,
    "preview_every": 3,
    "preview_prompts": ("a {subject} on grass", "a dog"),
    "drift_prompts": ("a dog",),
}
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Moments:
    """Counts what a run passes, tells each moment's name, and ends the process where its order says so.

    `kill_at`: the moment's number; or `kill_on`: a pattern of its name, and how many that match it are let pass.
    """

    def __init__(self, order: dict[str, Any], tell: Callable[[str], None]) -> None:
        self._folder, self._tell = order["folder"], tell
        self._left: int | None = order.get("kill_at")
        self._pattern = ".*"
        if "kill_on" in order:
            self._pattern, self._left = order["kill_on"]

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Before the system is asked."""
        if event not in WATCHED or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if isinstance(path, str) and path.startswith(self._folder):
            target = os.fspath(arguments[1]) if event == "os.rename" else ""
            self.passed(f"{event} {path} {target}".replace(self._folder, "").strip())

    def heard(self, event: Event) -> None:
        """The trainer's callback."""
        self.passed(f"busy {event.what}" if isinstance(event, BusyEvent) else type(event).__name__)

    def passed(self, name: str) -> None:
        name = re.sub(r"\.[0-9a-f]+\.tmp", "DRAFT", name)
        self._tell(name)
        if self._left is not None and re.fullmatch(self._pattern, name):
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1


def train(order: dict[str, Any], moments: Moments) -> None:
    """Start the run of this folder, or resume it where there is one."""
    if order.get("tear"):
        _tear_the_log(order["tear"])
    folder = Path(order["folder"])
    sys.addaudithook(moments.audit)
    resume = (folder / "config.json").exists()
    run(tiny_components(), pictures(), output_dir=folder, resume=resume, on_event=moments.heard, **SETTINGS)


def _tear_the_log(step: int) -> None:
    """The system has taken half of a line when the process ends."""
    whole = RunFolder.log

    def half(folder: RunFolder, event: Any) -> None:
        if event.step < step:
            return whole(folder, event)
        with open(folder.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event.log_line())[:50])
        os.kill(os.getpid(), signal.SIGKILL)

    kind: Any = RunFolder
    kind.log = half


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for an order; how it ended, and what it passed on its way."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            tell = os.fdopen(writing, "w", buffering=1, encoding="utf-8")
            train(order, Moments(order, lambda name: print(name, file=tell)))
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as told:
        print(json.dumps({"child": child}), flush=True)
        passed = told.read().splitlines()
    return {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "passed": passed}


def main() -> None:
    torch.set_num_threads(1)
    leave_blank()
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)

"""Cases run one after another in a process of their own, which a hang or an empty memory cannot outlive.

Linux: the process is forked from this one, so its libraries are loaded. Elsewhere cases run in this process: outcomes
are judged alike, and only a hang is not caught.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .case import Case, lay_out
from .outcome import Finding, Watch, judge

SECONDS = 25.0  # that a case may take, of the processor's time: other work on the machine does not count
PATIENCE = 4  # times as long by the clock: whoever only waits hangs too
ROOM = 2_500  # MB of addresses beyond those in use: an allocation past it fails, as on a full machine


class Worker:
    """Judges cases of one target. `sample`: the folder that each case gets a damaged copy of."""

    def __init__(self, run: Callable[[Path, Case], None], sample: Path, seconds: float = SECONDS) -> None:
        self._run, self._sample, self._seconds = run, sample, seconds
        self._place = Path(tempfile.mkdtemp(prefix="apt-fuzz-")).resolve()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._watch: Watch | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._place, ignore_errors=True)

    def judge(self, case: Case) -> Finding | None:
        """None: success, or one sentence."""
        if sys.platform != "linux":
            self._watch = self._watch or Watch()
            return _judge(self._run, self._sample, self._place, case, self._watch)
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send_bytes(case.to_json().encode())
        try:
            if not self._answers():
                return self._hung()
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._end()
            return Finding("died", f"exit code {code}", f"The process ended with {code}: a crash in native code.")
        return Finding(**answer) if answer else None

    def _start(self) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        arguments = (self._run, self._sample, self._place, (theirs, self._pipe), self._seconds)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of a fork with threads, which only wait here
            self._process.start()
        theirs.close()

    def _answers(self) -> bool:
        """Wait for the answer; False: it has taken too long."""
        assert self._pipe is not None
        start, spent = time.monotonic(), _processor_seconds(self._process.pid)
        while not self._pipe.poll(min(1.0, self._seconds / 4)):
            if time.monotonic() - start > PATIENCE * self._seconds:
                return False
            if _processor_seconds(self._process.pid) - spent > self._seconds:
                return False
        return True

    def _hung(self) -> Finding:
        self._end()
        stack = (self._place / "stack.txt").read_text(errors="replace").rpartition("Timeout")[2]
        ours = [line.strip() for line in stack.splitlines() if f"{os.sep}apt_train{os.sep}" in line]
        where = ours[0].rpartition(os.sep)[2] if ours else "a library"
        return Finding("hang", where, f"No answer within {self._seconds:g} s.\n{stack[:3000]}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(
    run: Callable[[Path, Case], None], sample: Path, place: Path, pipes: tuple[Connection, Connection], seconds: float
) -> None:
    """The forked process: answers cases until it is killed, or its parent is. `pipes`: its own end, and the other."""
    pipe, others = pipes
    others.close()  # else it would wait for itself once the parent is gone
    os.setpgrp()  # Ctrl-C is the parent's
    _limit()
    watch = Watch()
    with open(place / "stack.txt", "w") as stack, contextlib.suppress(EOFError):
        while True:
            case = Case.from_json(pipe.recv_bytes().decode())
            faulthandler.dump_traceback_later(seconds * 0.9, repeat=True, file=stack)
            finding = _judge(run, sample, place, case, watch)
            faulthandler.cancel_dump_traceback_later()
            pipe.send_bytes(json.dumps(finding and finding.to_dict()).encode())


def _judge(run: Callable[[Path, Case], None], sample: Path, place: Path, case: Case, watch: Watch) -> Finding | None:
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(sample, folder, case)
    return judge(run, folder, case, watch)


def _processor_seconds(process: int) -> float:
    """What a process has used so far; 0 where it has just ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _limit() -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (ROOM << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

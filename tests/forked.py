"""A process of its own that has its libraries already: forked from this one, it costs none of the seconds of importing.

It has this process's memory and nothing of its terminal: pipes stand in the place of stdin, stdout and stderr. It
computes with one thread. The others do not live on in it, and torch would wait for them forever. Where a test is about
how a process starts, it takes a `subprocess`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import IO

import torch

PIPED = (0, 1, 2)


class Forked:
    """A child that calls a function and exits with what it returns (None: 0)."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def __init__(self, call: Callable[[], int | None]) -> None:
        ends = [os.pipe() for _ in PIPED]
        theirs = [ends[0][0], ends[1][1], ends[2][1]]
        ours = [ends[0][1], ends[1][0], ends[2][0]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of a fork with threads, which only wait here
            self.pid = os.fork()
        if self.pid == 0:
            _serve(call, theirs, ours)
        for end in theirs:
            os.close(end)
        self.stdin, self.stdout, self.stderr = (os.fdopen(end, mode) for end, mode in zip(ours, "wrr", strict=True))
        self.returncode: int | None = None

    def wait(self) -> int:
        """The exit code; that of a signal below zero."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def close(self) -> None:
        """End it, whatever it is at."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


def _serve(call: Callable[[], int | None], theirs: list[int], ours: list[int]) -> None:
    """The child's whole life: it never comes back to the code that forked it."""
    code: int | None = 1
    try:
        for number, end in zip(PIPED, theirs, strict=True):
            os.dup2(end, number)
        for end in (*theirs, *ours):
            os.close(end)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in zip(PIPED, "rww", strict=True))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & may have switched it off
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and `nohup` this
        torch.set_num_threads(1)
        code = call()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)

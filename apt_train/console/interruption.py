"""Signals that ask a process to end: Ctrl-C, SIGTERM, a closed terminal, and Ctrl-Break on Windows.

In: which they are, and how a command with nothing to save responds. Not in: how a run responds (progress.py).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Windows has no SIGHUP, others no SIGBREAK
_ASKING = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_HANGUP = getattr(signal, "SIGHUP", None)
_ONE = 0.2  # seconds within which two signals count as one: `timeout` and service managers send two


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """The shell's exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(error, "number", signal.SIGINT)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Generator[None]:
    """Inside the block the handler receives every signal that asks for an end.

    Signals that were ignored stay ignored, as `nohup` intends, except Ctrl-C, where the intention is unknown. Threads
    other than the main one cannot set handlers.
    """
    with contextlib.ExitStack() as stack:
        for number in _ASKING if threading.current_thread() is threading.main_thread() else ():
            was = signal.getsignal(number)
            if was is not None and (number == signal.SIGINT or was != signal.SIG_IGN):
                stack.callback(signal.signal, number, was)
                signal.signal(number, handler)
        yield


class Heard:
    """Keeps track of the signals received."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    @property
    def number(self) -> int | None:
        """The first signal; None: none has come."""
        return self._first[0] if self._first else None

    def is_news(self, number: int) -> bool:
        """Record a signal; False if it only repeats the first.

        Two Ctrl-C always count as two, however fast they come. But closing the window while a stopped run is being
        saved must not lose it.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            return True
        first, when = self._first
        is_echo = now - when < _ONE or (number == _HANGUP and first != _HANGUP)
        return number == signal.SIGINT or not is_echo


@contextlib.contextmanager
def interrupted_by_signals() -> Generator[None]:
    """Inside the block every such signal raises `Interrupted`, so that cleanup runs as for Ctrl-C.

    It leaves the block even if a library has swallowed it or turned it into another exception.
    """
    heard = Heard()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if heard.is_news(number):
            raise Interrupted(number)

    with handled(interrupt):
        try:
            yield
        except BaseException:
            if heard.number is not None:
                raise Interrupted(heard.number) from None
            raise
        if heard.number is not None:
            raise Interrupted(heard.number)

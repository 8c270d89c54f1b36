"""Signals that ask a process to end: Ctrl-C, SIGTERM, a closed terminal, and Ctrl-Break on Windows.

In: which they are, and how a command that saves nothing answers them. Not in: how a run answers (progress.py).
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
_ONE = 0.2  # seconds within which two signals are one: `timeout` and service managers send theirs twice


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells count it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(error, "number", signal.SIGINT)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Generator[None]:
    """Inside the block the handler answers every signal that asks for an end.

    What was to be ignored stays so, as `nohup` wants it; of Ctrl-C it is not known who wanted that. In a thread there
    are no handlers.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _ASKING}
        before = {
            n: was for n, was in before.items() if was is not None and (n == signal.SIGINT or was != signal.SIG_IGN)
        }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


class Heard:
    """The signals that have come so far."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    @property
    def number(self) -> int | None:
        """The first one's; None: none has come."""
        return self._first[0] if self._first else None

    def is_news(self, number: int) -> bool:
        """Take note of one; False: it says what the first has said.

        Two of Ctrl-C are two wishes, however fast they come. Who closes the window while a stopped run is being saved
        does not want to lose it.
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
    """Inside the block every such signal raises `Interrupted`, as Ctrl-C does, so that nothing is left half done.

    It comes out of the block also where a library has swallowed it, or made another exception of it.
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

"""A terminal that may go away: what cannot be printed is lost, and that ends nothing.

In: the streams of the command line, and the files behind them. Not in: what is printed (cli.py, progress.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO, cast

# The pipe is closed, the disk full, the terminal gone; the stream was closed; a signal came while it was written to.
_LOST = (OSError, ValueError, RuntimeError)


class _Lossy:
    """A text stream that drops what the one below does not take, and writes out letters that its encoding lacks."""

    def __init__(self, below: TextIO | None) -> None:
        self._below = below  # None: as under pythonw, or where it was closed before the start
        self._like: TextIO = io.StringIO() if below is None else below

    def write(self, text: str) -> int:
        if self._below is not None:
            with contextlib.suppress(*_LOST):
                _write(self._below, text)
        return len(text)

    def flush(self) -> None:
        if self._below is not None:
            with contextlib.suppress(*_LOST):
                self._below.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like, name)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def lossy(stream: TextIO | None) -> TextIO:
    """The stream as one that never raises; None: one that takes everything and shows nothing."""
    return cast(TextIO, stream if isinstance(stream, _Lossy) else _Lossy(stream))


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches it, and lines can be drawn over."""
    try:
        return stream.isatty()
    except (OSError, ValueError):  # closed
        return False


@contextlib.contextmanager
def lossy_output() -> Generator[None]:
    """Inside the block nothing that is printed can raise, nor at the interpreter's end what is still unwritten."""
    _fill_closed_places()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lossy(before[0]), lossy(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _settle(stream)


def _fill_closed_places() -> None:
    """A standard stream that was closed leaves its number free: a run's file would get it, and others' output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _point_at_nothing(number)


def _settle(stream: TextIO | None) -> None:
    """The interpreter flushes at its end and complains where it cannot: what is left then goes nowhere."""
    if stream is None:
        return
    try:
        stream.flush()
    except _LOST:
        with contextlib.suppress(*_LOST):
            if stream.fileno() in (1, 2):
                _point_at_nothing(stream.fileno())


def _point_at_nothing(number: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)

"""Output to a terminal that may vanish: what cannot be printed is dropped, without ending anything.

In: the streams of the command line, and the files behind them. Not in: what is printed (cli.py, progress.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO, cast

# Closed pipe, full disk or lost terminal; closed stream; signal during a write; an object that can only be written to.
_LOST = (OSError, ValueError, RuntimeError, AttributeError)


class _Lossy:
    """A text stream that drops what the stream below rejects, and escapes letters missing from its encoding."""

    def __init__(self, below: TextIO | None) -> None:
        self._below = below  # None: under pythonw, or if it was closed before the start
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
    """A stream that never raises; for None one that accepts everything and shows nothing."""
    return cast(TextIO, stream if isinstance(stream, _Lossy) else _Lossy(stream))


def is_terminal(stream: TextIO) -> bool:
    """Whether it is a terminal, where lines can be redrawn."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or an object that can only be written to
        return stream.isatty()
    return False


@contextlib.contextmanager
def lossy_output() -> Generator[None]:
    """Inside the block printing cannot raise, and neither can the interpreter's flush at exit."""
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
    """Reopen closed standard streams: otherwise a run's file would get the number, and others' output with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _point_at_nothing(number)


def _settle(stream: TextIO | None) -> None:
    """Redirect a stream that cannot be flushed, because the interpreter would complain about it at exit."""
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

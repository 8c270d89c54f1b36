"""The signals that end a program, for processes that tests begin and end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

ENDING = () if os.name == "nt" else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def hearing() -> Iterator[None]:
    """A process that is begun inside the block hears what ends one, also where this one does not: in a shell's
    background, or under nohup, whose children would ignore Ctrl-C or SIGHUP, too.
    """
    ignored = [one for one in ENDING if signal.getsignal(one) is signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, signal.SIG_DFL)
    try:
        yield
    finally:
        for one in ignored:
            signal.signal(one, signal.SIG_IGN)

"""Silences libraries: their log, and what their native code writes straight to the process's error stream.

Not in: handling the file they complain about (`pictures`, `tokenizer_files`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator

_STDERR = 2


@contextlib.contextmanager
def stderr_silenced() -> Generator[None]:
    """Discard all output to the error stream inside the block, for the whole process: native code bypasses Python."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # the stream is closed, so nothing can be shown
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


@contextlib.contextmanager
def quiet_libraries() -> Generator[None]:
    """Silence the libraries' own notices inside the block; ours say what matters."""
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, ("transformers", "diffusers", "peft")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield

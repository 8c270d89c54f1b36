"""Libraries in C and Rust write their complaints to the process's error stream, past Python: here they are not heard.

Not in: what becomes of a file that they complain of (`pictures`, `tokenizer_files`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

_STDERR = 2


@contextlib.contextmanager
def unheard() -> Generator[None]:
    """Inside the block nothing that native code writes to the error stream is shown. It is the process's own stream."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # closed: there is nobody to hear it
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)

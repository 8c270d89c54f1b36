"""A small file of a run, read whole, whatever lies in its place by now."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def read_small(path: Path, most: int) -> bytes:
    """A file's content. OSError: there is none, or it is no file (a pipe would be waited for) or larger than `most`."""
    found = path.stat()
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return path.read_bytes()

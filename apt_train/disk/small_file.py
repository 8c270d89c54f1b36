"""Reads a small file of a run, whatever may lie in its place by now."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def read_small(path: Path, most: int) -> bytes:
    """A file's content. OSError: it is missing, larger than `most`, or not a regular file (a pipe would block)."""
    found = path.stat()
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", os.fspath(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return path.read_bytes()

"""Pretends to be Windows as far as files in use go: what this process has open or mapped is not moved or removed.

Needs Linux, which tells in /proc what is in use. Not here: files that other processes use, moves past Python's `os`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt_train.names import LOCK

PATHS = {"replace": 2, "rename": 2, "remove": 1, "unlink": 1, "rmdir": 1}  # functions of `os`, and how many paths


def refuse_files_in_use(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns what has been refused, a line each, because code may get over a refusal and still leave a file behind."""
    refused: list[str] = []
    if sys.platform == "linux":
        monkeypatch.setattr(shutil, "_use_fd_functions", False)  # Windows removes folders by their paths
        for name, count in PATHS.items():
            monkeypatch.setattr(os, name, _refusing(getattr(os, name), count, refused))
    return refused


def _refusing(real: Callable[..., Any], count: int, refused: list[str]) -> Callable[..., Any]:
    def act(*arguments: Any, **named: Any) -> Any:
        for place in map(os.path.abspath, arguments[:count]):
            path = Path(place).parent.resolve() / Path(place).name
            if path.name == LOCK:  # some versions of filelock remove it while they hold it, but not on Windows
                continue
            if used := sorted(file for file in _in_use(path) if Path(file).is_relative_to(path)):
                refused.append(f"{real.__name__} of {path}: {used[0]} is in use")
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(*arguments, **named)

    return act


def _in_use(path: Path) -> set[str]:
    """Files that this process has open, and if `path` is a folder or may be mapped, those that it has mapped."""
    open_files = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    if path.suffix != ".safetensors" and not path.is_dir():
        return open_files
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return open_files | {line[line.index("/") :] for line in mapped if line.endswith(".safetensors")}

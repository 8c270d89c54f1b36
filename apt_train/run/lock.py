"""Locks a run's folder, so that only one process trains in it.

This uses the system's lock, which is released even if the process is killed. Some network file systems have none.
There a file names the process that holds the folder, and counts for nothing once that process has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..disk.files import is_running
from ..disk.json_file import is_object, read_small_json
from ..errors import InputError
from ..names import LOCK, LOCK_WITHOUT_SYSTEM

try:
    import fcntl
except ImportError:  # Windows, where locking is part of opening a file
    fcntl = None


@contextlib.contextmanager
def held(path: Path) -> Generator[None]:
    """Inside the block no other process can train here. InputError: another one does, or the lock is a link."""
    if (path / LOCK).is_symlink():  # some versions of filelock would empty its target, others find no lock
        raise InputError(f"{path / LOCK} is a link: delete it, then start again.")
    lock = FileLock(path / LOCK, timeout=1)  # a scanner may briefly hold a lock file that was just released
    try:
        has_locks = _has_locks(path)
        if has_locks:
            lock.acquire()
    except Timeout:
        raise InputError(f"{path} is being trained in by another process: wait for it, or end it.") from None
    except (OSError, NotImplementedError):
        has_locks = False
    with contextlib.nullcontext() if has_locks else _held_by_file(path / LOCK_WITHOUT_SYSTEM):
        try:
            yield
        finally:
            lock.release()


def _has_locks(path: Path) -> bool:
    """Whether the file system has locks. Tested on a separate file: a missing lock can look like one that is held."""
    if fcntl is None:
        return True
    probe = path / f".{uuid.uuid4().hex[:16]}.tmp"
    try:
        with open(probe, "xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _held_by_file(file: Path) -> Generator[None]:
    ours = {"host": _host(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    if _has_ended(_holder(file)):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    try:
        with open(file, "x", encoding="utf-8") as opened:
            json.dump(ours, opened)
    except OSError as error:
        raise InputError(_refusal(file, error)) from None
    try:
        if _holder(file) != ours:  # two processes replaced the same stale lock: the later one wins
            raise InputError(_refusal(file, FileExistsError()))
        yield
    finally:
        if _holder(file) == ours:
            with contextlib.suppress(OSError):
                file.unlink()


def _refusal(file: Path, error: OSError) -> str:
    if not isinstance(error, FileExistsError):
        return f"{file.parent} cannot be locked ({error.strerror}): choose an output folder on another disk."
    holder = _holder(file) or {}
    return (
        f"{file.parent} is being trained in by another process ({holder.get('pid')} on {holder.get('host')}): wait for "
        f"it, end it, or delete {file.name} there if it has ended."
    )


def _holder(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        content = read_small_json(file, 1 << 16)
        return content if is_object(content) else None
    return None


def _has_ended(holder: dict[str, object] | None) -> bool:
    """Whether the process is known to have ended. One on another machine cannot be checked."""
    pid = (holder or {}).get("pid")
    is_here = holder is not None and holder.get("host") == _host()
    return is_here and type(pid) is int and pid > 0 and not is_running(pid)


def _host() -> str:
    """This machine, or this container: process numbers are only valid inside it."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()

"""Writes files so that a reader never sees half of one.

In: the atomic write behind every output, error messages for a full or unwritable disk, and removing drafts of killed
writers. Not in: any format; see `tensor_writer` and `export`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..paths import check_file_name
from ..wording import reason_of

_T = TypeVar("_T")

DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_MISSING = (errno.ENOENT, errno.ENOTDIR)

# A draft's name identifies its writer: the machine (12 digits), the process (8), and a random part. Drafts with just 16
# random digits come from earlier versions, so their writer is unknown.
_DRAFT = re.compile(r"\.(?:(?P<machine>[0-9a-f]{12})(?P<process>[0-9a-f]{8})[0-9a-f]{12}|[0-9a-f]{16})\.tmp")
_ABANDONED = 24 * 3600.0  # seconds without a change after which an unknown writer's draft counts as abandoned


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename the finished file to `path`.

    The file is flushed to disk before the rename, so `path` holds either its old content or all of the new, even after
    a power cut. Its mode is that of any new file (0666 less the umask). The temporary path has no suffix, so a writer
    that infers the format from the suffix must be given it. Exceptions from `write` pass through and leave nothing
    behind. If `path` is a link, the file replaces the link, and its target is untouched.

    Raises:
        InputError: the disk is full, the folder is missing or not writable, or the name cannot be used.
    """
    path = Path(path)
    check_file_name(path.name)
    temporary = _temporary_name(path.parent)
    try:
        mode = _create(temporary)
        write(temporary)
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # a writer that replaced the file has made it private
            temporary.chmod(mode)
        flush(temporary)
        patiently(os.replace, temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(_in_words(error, path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, with the same bytes on every system. InputError: as in `atomic_write`."""
    atomic_write(path, lambda draft: draft.write_bytes(text.encode()))


def make_folder(path: Path) -> None:
    """Make a folder if there is none. A link in its place is replaced; its target is untouched.

    Raises:
        InputError: a file has that name, the disk is full, or the parent is not writable.
    """
    try:
        if path.is_symlink():
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{path} is a file, where a folder belongs: move it away.") from None
    except OSError as error:
        raise InputError(_in_words(error, path)) from error


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be written to or made. Leaves nothing behind and makes nothing.

    Raises:
        InputError: `folder`, or its nearest existing ancestor, takes no new file.
    """
    existing = Path(folder)
    try:
        existing = next(path for path in (existing, *existing.absolute().parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise InputError(f"{existing} is not a folder, so nothing can be written below it: choose another folder.")
        _try_to_write(existing)
    except OSError as error:
        raise InputError(_in_words(error, existing / "output")) from error


def check_new_file(path: Path) -> None:
    """Refuse a file now that could not be written later, after the work for it is done. Leaves nothing behind.

    Raises:
        InputError: a folder has that name, the name cannot be used, or its folder is missing or not writable.
    """
    check_file_name(path.name)
    if path.is_dir():
        raise InputError(f"{path} is a folder, where a file belongs: give another name.")
    try:
        _try_to_write(path.parent)
    except OSError as error:
        raise InputError(_in_words(error, path)) from error


def check_deep_file(folder: Path, inside: Path) -> None:
    """Refuse a folder in which a draft's file would have too long a path, as on Windows. Leaves nothing behind.

    `inside`: the file's path without the draft. InputError: the file cannot be written.
    """
    draft = _temporary_name(folder)
    try:
        (draft / inside).parent.mkdir(parents=True)
        atomic_write(draft / inside, Path.touch)
    except OSError as error:
        raise InputError(_in_words(error, draft / inside)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _try_to_write(folder: Path) -> None:
    probe = _temporary_name(folder)
    _create(probe)
    patiently(probe.unlink)


def sweep(folder: str | Path, *, alone: bool = False) -> None:
    """Remove drafts, files and folders, that killed writers left in a folder. Links are neither followed nor removed.

    The draft of a process running on this machine is never touched. That of an unknown writer (another machine, or
    this one before a restart) is removed after a day without a change.

    Args:
        alone: the caller holds the folder's lock, so drafts of unknown writers are removed at once.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = _DRAFT.fullmatch(entry.name)
            if name is not None and _is_left_behind(entry, name, alone):
                remove(Path(entry.path))


def _is_left_behind(entry: os.DirEntry[str], name: re.Match[str], alone: bool) -> bool:
    if entry.is_symlink():
        return False
    if name["machine"] == _machine():
        return not is_running(int(name["process"], 16))
    try:
        return alone or time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
    except OSError:  # already gone
        return False


def is_running(process: int) -> bool:
    """True also for a process that may not be inspected; False for one that has ended and awaits its parent."""
    import psutil  # imported here, because few callers sweep

    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.ZombieProcess:
        return False
    except (psutil.NoSuchProcess, OverflowError):
        return _is_hidden(process)
    except psutil.Error:
        return True


def _is_hidden(process: int) -> bool:
    """Whether it runs though it is not listed: another user's where /proc has `hidepid`, or any where it is missing."""
    if os.name == "nt" or process < 1:  # signal 0 is Ctrl+C there; 0 is this process's own group
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _machine() -> str:
    """12 hex digits for this boot of the machine and its process-number namespace, of which a container has its own."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents. Of a link only the link is removed. OSError: it fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary_name(folder: Path) -> Path:
    return folder / f".{_machine()}{os.getpid():08x}{secrets.token_hex(6)}.tmp"


def _create(path: Path) -> int:
    """Create an empty new file. Returns its permission bits, which reveal the umask without changing it."""
    path.touch(exist_ok=False)
    return stat.S_IMODE(path.stat().st_mode)


def flush(path: Path) -> None:
    """Flush a file's content to the disk, so that it survives a power cut. OSError: it fails."""
    with open(path, "rb+") as file:  # Windows only flushes files open for writing
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, if the system can: Windows and some network file systems cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _in_words(error: OSError, path: Path) -> str:
    name = path.name
    folder = next(place for place in path.parents if not any(map(_DRAFT.fullmatch, place.parts)))  # drafts are gone
    if error.errno in DISK_FULL:
        return f"{name} could not be written to {folder}, the disk is full: free space or choose another one."
    if error.errno in _REFUSED:
        return (
            f"{name} could not be written: {folder} is not writable, or another program has the file open: "
            "allow writing, close it there, or choose another folder."
        )
    if error.errno in _MISSING and folder.is_dir():
        return f"{name} could not be written to {folder}, whose path may be too long here: choose a shorter one."
    if error.errno in _MISSING:
        return f"{name} could not be written: the folder {folder} does not exist: make it or choose another."
    return f"{name} could not be written to {folder} ({reason_of(error)}): choose another folder or name."


def patiently(act: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Act on a file or folder, with retries on Windows, which refuses while a scanner, indexer or reader holds it open.

    It retries for a few seconds; the last exception passes through.
    """
    for wait in (0.1, 0.3, 1.0, 3.0) if os.name == "nt" else ():
        try:
            return act(*arguments, **options)
        except PermissionError:
            time.sleep(wait)
    return act(*arguments, **options)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """A temporary folder to fill. When the block ends it becomes `path`, replacing what was there.

    Files inside are flushed first, so a folder named `path` is complete. Exceptions pass through and leave nothing
    behind. If `path` is a link, its target is untouched.

    Raises:
        InputError: the disk is full, or the parent folder is not writable.
    """
    path = Path(path)
    draft = _temporary_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        for file in draft.iterdir():
            flush(file)
        _flush_folder(draft)
        take_place(draft, path)
    except OSError as error:
        raise InputError(_in_words(error, path)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def take_place(draft: Path, path: Path) -> None:
    """Rename a folder over another, which is replaced whole or not at all. OSError: one of them is in use.

    The old content moves aside in one rename, because removing it takes time in which the process may be killed.
    """
    old = _temporary_name(path.parent)
    is_taken = path.exists() or path.is_symlink()
    if is_taken:
        patiently(os.replace, path, old)
    try:
        patiently(os.replace, draft, path)
    except OSError:
        if is_taken:
            patiently(os.replace, old, path)
        raise
    _flush_folder(path.parent)
    with contextlib.suppress(OSError):  # perhaps open in another program; a later sweep removes it
        remove(old)

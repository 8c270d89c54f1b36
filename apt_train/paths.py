"""Paths as a user types them, and commands as a user can paste them.

In: `~`, impossible paths, quoting, names that no terminal can show. Not in: file contents.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from pathlib import Path

from .errors import InputError

_UNUSABLE = {errno.ENAMETOOLONG: "is too long", errno.ELOOP: "leads through links in a circle"}
_MAX_NAME = 255  # bytes, the common limit of ext4, NTFS, APFS
_PORTS = [f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"]
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", *_PORTS}
_NOT_IN_NAMES = {*'"*:<>?|\\', *map(chr, range(32))}  # on Windows; after a colon comes the name of a hidden stream
_SHOWN = 80  # characters of a path in a message
_PLAIN_ON_WINDOWS = set("\\/:._-+@=")  # besides letters and digits; anything else may be special to cmd or PowerShell


def expanded(given: str | Path, what: str = "The path") -> Path:
    """Expand `~` and `~user`, also where quotes kept the shell from doing it.

    InputError: it is empty or no path, no file can have it, or its home directory is unknown here. `what`: what the
    message calls it.
    """
    try:
        text = os.fsdecode(given)
    except TypeError:
        raise InputError(f"{what} is of the type {type(given).__name__}: give a path.") from None
    if not text.strip():
        raise InputError(f"{what} is empty: give a path.")
    path = os.path.expanduser(text)
    _check_usable(path, what)
    if path == text and text.startswith("~") and not os.path.lexists(text):
        raise InputError(f"{what} is {text}, but no home directory is known for that: write the whole path.")
    return Path(path)


def check_file_name(name: str) -> None:
    """Refuse a file name that some system cannot store, so that a run's files can be copied anywhere.

    Raises:
        InputError: a Windows device name (`con`, `nul.txt` ...), characters that Windows does not store, or more than
            255 bytes.
    """
    if name.split(".")[0].rstrip().lower() in _DEVICES:
        raise InputError(f"{name} is a reserved name on Windows: choose another name.")
    if _NOT_IN_NAMES & set(name) or name.endswith((".", " ")):
        raise InputError(
            f'{one_line(name)} cannot be a file name on Windows: leave out "*:<>?|\\ and any dot or space at the end.'
        )
    if not 1 <= (size := len(name.encode())) <= _MAX_NAME:
        raise InputError(f"The file name {name[:40]!r}... has {size} bytes: choose one of 1 to {_MAX_NAME}.")


def absolute(path: Path) -> Path:
    """The absolute path. InputError: the current folder was deleted."""
    try:
        return path.absolute()
    except OSError:
        raise InputError("The current folder does not exist any more: change to another one.") from None


def are_same(one: Path, other: Path) -> bool:
    """Whether both paths lead to one place: by links, or in other letters where the system takes them for the same."""
    with contextlib.suppress(OSError):  # one of them does not exist yet
        return os.path.samefile(one, other)
    return absolute(one).resolve() == absolute(other).resolve()


def _check_usable(path: str, what: str) -> None:
    try:
        os.lstat(path)
    except ValueError:  # a zero byte, or characters missing from the system's encoding
        raise InputError(f"{what} is {ascii(path)[:_SHOWN]}, which no file can be called: give another.") from None
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise InputError(f"{what} ({one_line(path)[:_SHOWN]}) {_UNUSABLE[error.errno]}: give another.") from None
    with contextlib.suppress(OSError):  # the current folder may be gone
        path = os.path.abspath(path)
    if any("\ud800" <= letter <= "\udfff" for letter in path):  # safetensors and tokenizers cannot open such a file
        raise InputError(f"{what} ({one_line(path)[:_SHOWN]}) has bytes that are no letters here: rename it.")


def command(*words: str | Path) -> str:
    """An `apt-train` command line of these words, quoted for this system's shell so that it can be pasted."""
    return " ".join(["apt-train", *(_quoted(str(word)) for word in words)])


def argument(path: Path) -> str:
    """The path as a command-line argument that cannot be mistaken for an option or a home directory."""
    text = str(path)
    return f".{os.sep}{text}" if text.startswith(("-", "~")) else text


def _quoted(word: str) -> str:
    if os.name == "nt":
        plain = all(letter.isalnum() or letter in _PLAIN_ON_WINDOWS for letter in word)
        return word if plain and word else f'"{word}"'
    if word.isprintable():
        return shlex.quote(word)
    letters = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in os.fsencode(word))
    return "$'" + "".join(letters) + "'"  # bash and zsh syntax for unprintable bytes


def one_line(text: str) -> str:
    """The text with line breaks and unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

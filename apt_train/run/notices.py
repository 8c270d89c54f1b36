"""Keeps a run's notices in its folder: `notices.jsonl`, a line `{"step", "text"}` per sentence.

In: storing and reading back. Not in: who sends them (`training.listener`), the report that shows them (`report`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..disk.files import write_text
from ..disk.json_file import is_object
from ..errors import InputError
from ..events import NoticeEvent
from ..names import NOTICES
from .log import append

MOST, LONGEST = 1000, 2000  # notices, and characters in each; the file may come from anyone
MOST_BYTES = 8_000_000


class Notices:
    """A run's notices, each once. They wait in memory until the run has a folder."""

    def __init__(self, kept: Sequence[NoticeEvent] = ()) -> None:
        self._all = list(kept)
        self._written = len(self._all)  # so many of them are in the folder's file

    @property
    def texts(self) -> list[str]:
        """The texts in the order they were sent."""
        return [notice.text for notice in self._all]

    def add(self, text: str, step: int) -> None:
        """Add a notice, unless it is known already."""
        text, known = text[:LONGEST], self.texts
        if text not in known and len(known) < MOST:
            self._all.append(NoticeEvent(text, step))

    def write(self, folder: Path) -> None:
        """Append waiting notices to the folder's file. If that fails they keep waiting: training does not need them.

        Anything but a regular file of plausible size is replaced by a new file with all notices.
        """
        path, waiting = folder / NOTICES, self._all[self._written :]
        if not waiting:
            return
        try:
            if _is_ours(path):
                append(path, (_line_end(path) + _lines(waiting)).encode())
            else:
                write_text(path, _lines(self._all))
            self._written = len(self._all)
        except (OSError, InputError):
            return


def read_notices(folder: Path) -> list[NoticeEvent]:
    """The notices in a run's folder, each once; none if there is no file. Damaged lines are skipped."""
    path = folder / NOTICES
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode(errors="replace")
    except OSError:
        return []
    first: dict[str, NoticeEvent] = {}
    for notice in _parsed(text):
        first.setdefault(notice.text, notice)
    return list(first.values())[:MOST]


def _parsed(text: str) -> Iterator[NoticeEvent]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_object(value) and isinstance(said := value.get("text"), str) and said.strip():
            step = value.get("step")
            said = said.encode(errors="replace").decode()  # a lone surrogate cannot be written to a file
            yield NoticeEvent(said[:LONGEST], step if type(step) is int and step >= 0 else 0)


def _lines(notices: list[NoticeEvent]) -> str:
    return "".join(json.dumps({"step": notice.step, "text": notice.text}) + "\n" for notice in notices)


def _is_ours(path: Path) -> bool:
    """Whether the file can be appended to: not a pipe, which would block, nor a link, which must not be followed."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < MOST_BYTES


def _line_end(path: Path) -> str:
    """The newline that a line cut short by a crash lacks."""
    content = path.read_bytes()
    return "\n" if content and not content.endswith(b"\n") else ""

"""The report's curves left blank: drawing them takes longer than all else in a short run.

Everything else of a report is as ever: which figures there are, its numbers, its words, its attention tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from PIL import Image

from apt_train.report import write


class Blank:
    """In the place of a figure."""

    def savefig(self, file: IO[bytes], **_: Any) -> None:
        Image.new("RGB", (4, 4)).save(file, format="PNG")


def leave_blank(replace: Callable[..., None] = setattr) -> None:
    """From now on; `replace`: a monkeypatch's `setattr`, which puts the real ones back."""
    replace(write, "_figure", lambda *_: Blank())

"""Which pictures of a snapshot sheet are drawn again.

Not here: what is drawn, and on a real host (`tests/host/test_snapshot_sheet.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .node_texts import node_modules


class Wire:
    """Something that a weak reference can be made of."""


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with node_modules("snapshot_sheet", "host.progress") as (module, progress):
        quiet = SimpleNamespace(say=lambda _: None, show=lambda *_: None, tells_cancel=contextlib.nullcontext)
        progress.NodeProgress = lambda *_: quiet
        progress.stop_if_cancelled = module._grid = lambda *_: None
        yield module


@pytest.fixture
def drawn(sheets: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Draws a node's sheet of one prompt by two snapshots; the pictures that had to be drawn for it."""

    def draw(node: str, wires: Any, run: str, chosen: int = 0) -> list[str]:
        new: list[str] = []
        monkeypatch.setattr(sheets.Sheet, "_painter", lambda _, column: lambda _: new.append(column.letter))
        of_run = SimpleNamespace(folder=Path(run), owner=run, class_word="toy")
        columns = sheets.columns_of([1, 2], [1.0], prior=False)
        sheets.Sheet(wires, of_run, "", None, 64, node).drawn(["a toy"], columns, columns[chosen])
        return new

    return draw


def test_two_sheets_in_a_graph_keep_their_pictures_each(sheets: Any, drawn: Callable[..., list[str]]) -> None:
    wires = sheets.DrawingWires(Wire(), Wire(), Wire())
    assert drawn("5", wires, "apt") == drawn("6", wires, "dreambooth") == ["A", "B"]
    assert drawn("5", wires, "apt", chosen=1) == drawn("6", wires, "dreambooth", chosen=1) == []
    other = sheets.DrawingWires(Wire(), Wire(), Wire())
    assert drawn("6", other, "dreambooth") == ["A", "B"] and drawn("5", wires, "apt") == []


def test_pictures_of_wires_that_are_gone_are_let_go(sheets: Any, drawn: Callable[..., list[str]]) -> None:
    drawn("5", sheets.DrawingWires(Wire(), Wire(), Wire()), "apt")
    kept = sheets.DrawingWires(Wire(), Wire(), Wire())
    drawn("6", kept, "dreambooth")
    assert list(sheets._DRAWN) == ["6"]

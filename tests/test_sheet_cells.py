"""What a snapshot sheet shows, out of what a user writes: columns in order, and the one that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.node_modules import node_module

THERE = [250, 500, 750, 1000, 1250, 1500]


@pytest.fixture(scope="module")
def cells() -> Iterator[Any]:
    with node_module("sheet_cells") as module:
        yield module


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", [250, 500, 750, 1000, 1500]),
        (" , \n", [250, 500, 750, 1000, 1500]),
        ("all", THERE),
        ("last", [1500]),
        ("recommended, last", [1000, 1500]),
        ("1500, 250 ,250", [250, 1500]),
        ("500\nLAST", [500, 1500]),
        ("333", [333]),
    ],
)
def test_the_snapshots_that_are_named_rising_and_once(cells: Any, text: str, shown: list[int]) -> None:
    assert cells.steps_shown(text, THERE, 500 if text.strip(" ,\n") == "" else 1000) == shown


@pytest.mark.parametrize("there", [[4], [2, 4], [2, 4, 6], [2, 4, 6, 8]])
def test_a_short_run_shows_all_it_has(cells: Any, there: list[int]) -> None:
    assert cells.steps_shown("", there, there[0]) == there


@pytest.mark.parametrize("text", ["", "last", "all"])
def test_a_run_whose_snapshots_are_gone_is_refused(cells: Any, text: str) -> None:
    with pytest.raises(cells.InputError, match="^The run has no snapshots any more: restore its folder"):
        cells.steps_shown(text, [], 1000)


@pytest.mark.parametrize("text", ["best", "-5", "1e3", "250 500", "²", "9" * 10])
def test_no_snapshot_is_refused(cells: Any, text: str) -> None:
    with pytest.raises(cells.InputError, match=r"steps holds .*: write steps of snapshots, last, recommended or all\."):
        cells.steps_shown(text, THERE, 1000)


def test_strengths_in_their_order_and_once(cells: Any) -> None:
    assert cells.strengths_shown("1, 0.6,0.6\n 0, 1.20") == [1, 0.6, 0, 1.2]


@pytest.mark.parametrize("text", ["strong", "-0.1", "4.5", "nan", "inf", "", " , "])
def test_no_strength_is_refused(cells: Any, text: str) -> None:
    with pytest.raises(cells.InputError, match=r"strengths (holds|is empty)"):
        cells.strengths_shown(text)


def test_a_column_for_each_snapshot_at_each_strength(cells: Any) -> None:
    columns = cells.columns_of([250, 500], [0.6, 1.0], prior=True)
    assert [(column.letter, column.step, column.strength) for column in columns] == [
        ("A", None, 0.0), ("B", 250, 0.6), ("C", 250, 1.0), ("D", 500, 0.6), ("E", 500, 1.0),
    ]  # fmt: skip
    assert [column.label for column in columns[:3]] == ["A · prior", "B · step 250\nstrength 0.6", "C · step 250"]
    assert cells.columns_of([250], [1.0], prior=False)[0].letter == "A"
    assert len(cells.columns_of(range(25), [1.0], prior=True)) == 26
    with pytest.raises(cells.InputError, match="make 27 columns, and a sheet has at most 26"):
        cells.columns_of(range(26), [1.0], prior=True)


@pytest.mark.parametrize(
    ("text", "letter"), [("", "D"), ("b", "B"), (" E ", "E")], ids=["the recommended", "a letter", "another"]
)
def test_the_column_that_goes_on(cells: Any, text: str, letter: str) -> None:
    columns = cells.columns_of([250, 500], [0.6, 1.0, 1.3], prior=True)
    assert cells.chosen_column(text, columns, 250).letter == (letter if text else "C")
    assert cells.chosen_column("", columns, 480).step == 500


@pytest.mark.parametrize("text", ["A", "Z", "step 250", "BC"])
def test_no_column_to_go_on_is_refused(cells: Any, text: str) -> None:
    columns = cells.columns_of([250, 500], [1.0], prior=True)
    with pytest.raises(cells.InputError, match=r"which is no snapshot's: write one of B, C, or nothing\."):
        cells.chosen_column(text, columns, 250)


def test_prompts_are_lines(cells: Any) -> None:
    assert cells.prompts_shown("a {subject}\n\n  by the sea \n") == ["a {subject}", "by the sea"]
    with pytest.raises(cells.InputError, match="prompts is empty"):
        cells.prompts_shown(" \n ")


def test_more_pictures_than_anybody_waits_for_are_refused(cells: Any) -> None:
    cells.check_count(20, 10)
    with pytest.raises(cells.InputError, match="The sheet has 220 pictures, and at most 200"):
        cells.check_count(22, 10)

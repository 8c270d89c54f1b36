"""Parses the widgets of a snapshot sheet: steps, strengths, prompts; and which column is passed on.

In: parsing and refusing. Not in: pictures (`snapshot_sheet`).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from ..apt_train.errors import InputError

MOST_PICTURES, MOST_COLUMNS = 200, 26  # on a sheet; each column has a letter
SHOWN = 4  # snapshots shown if the user names none
STRONGEST = 4.0


@dataclass(frozen=True)
class Column:
    """A snapshot at a strength; `step` None: the original model."""

    letter: str
    step: int | None
    strength: float

    @property
    def label(self) -> str:
        if self.step is None:
            return f"{self.letter} · prior"
        return f"{self.letter} · step {self.step}" + (f"\nstrength {self.strength:g}" if self.strength != 1 else "")


def columns_of(steps: Sequence[int], strengths: Sequence[float], *, prior: bool) -> list[Column]:
    """The columns in order, one letter each. InputError: more columns than letters."""
    pairs: list[tuple[int | None, float]] = [(None, 0.0)] if prior else []
    pairs += [(step, strength) for step in steps for strength in strengths]
    if len(pairs) > MOST_COLUMNS:
        raise InputError(
            f"steps and strengths make {len(pairs)} columns, and a sheet has at most {MOST_COLUMNS}: name fewer."
        )
    return [Column(letter, *pair) for letter, pair in zip(string.ascii_uppercase, pairs, strict=False)]


def steps_shown(text: str, there: Sequence[int], recommended: int) -> list[int]:
    """The snapshots to show, ascending.

    `text`: steps, `last`, `recommended`, separated by commas; `all`; empty: four from the first to the last, and the
    recommended one. `there`: the run's snapshots, ascending. InputError: there are none, or an unknown word.
    """
    if not there:
        raise InputError("The run has no snapshots any more: restore its folder, or train it again with restart.")
    words = [word.strip().lower() for word in text.replace("\n", ",").split(",") if word.strip()]
    if not words:
        spread = {round(k * (len(there) - 1) / (SHOWN - 1)) for k in range(SHOWN)}
        return sorted({*(there[k] for k in spread), recommended})
    named: set[int] = set()
    for word in words:
        if word == "all":
            named |= set(there)
        elif word in ("last", "recommended"):
            named.add(there[-1] if word == "last" else recommended)
        elif word.isascii() and word.isdigit() and len(word) < 10:
            named.add(int(word))
        else:
            raise InputError(f"steps holds {word[:40]!r}: write steps of snapshots, last, recommended or all.")
    return sorted(named)


def strengths_shown(text: str) -> list[float]:
    """The LoRA's strengths, in the given order. InputError: not a number from 0 to 4, or none at all."""
    found: list[float] = []
    for word in (word.strip() for word in text.replace("\n", ",").split(",")):
        if not word:
            continue
        strength = _number(word)
        if strength is None or not 0 <= strength <= STRONGEST:
            raise InputError(
                f"strengths holds {word[:40]!r}: write numbers from 0 to {STRONGEST:g}, such as 0.6, 0.8, 1."
            )
        found += [strength] if strength not in found else []
    if not found:
        raise InputError("strengths is empty: write numbers such as 0.6, 0.8, 1.")
    return found


def prompts_shown(text: str) -> list[str]:
    """The prompts, one per line. InputError: there are none."""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("prompts is empty: write a prompt a line, with {subject} where the subject goes.")
    return prompts


def check_count(columns: int, prompts: int) -> None:
    """InputError: more pictures than anyone would wait for."""
    if columns * prompts > MOST_PICTURES:
        raise InputError(
            f"The sheet has {columns * prompts} pictures, and at most {MOST_PICTURES} are drawn: name fewer steps, "
            "strengths or prompts."
        )


def chosen_column(text: str, columns: Sequence[Column], recommended: int) -> Column:
    """The column to pass on: by its letter; empty: the recommended snapshot, at the strength nearest to 1.

    InputError: no such letter, or that of the original model.
    """
    letter, tuned = text.strip().upper(), [column for column in columns if column.step is not None]
    if not letter:
        return min(tuned, key=lambda column: (abs((column.step or 0) - recommended), abs(column.strength - 1)))
    for column in tuned:
        if column.letter == letter:
            return column
    choices = ", ".join(column.letter for column in tuned)
    raise InputError(f"column is {text.strip()[:40]!r}, which is no snapshot's: write one of {choices}, or nothing.")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None

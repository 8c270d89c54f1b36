"""`log.jsonl`, a line of JSON per step: the one reader, the one writer, and what becomes of lines that are no step.

The rules, the same for resume, report and monitor:
  - A step is an object with a whole `step` from 1 and numbers where `StepEvent.log_line` has them. NaN reads as null.
  - Of a step logged twice the last line counts. Steps count in rising order, wherever they stand.
  - Of lines with different numbers of timestep bins those count that have as many as the settings say, else as most.
  - Every other line is left out, told by its number, and stays in the file. Only a last line without an end that is no
    step goes at the next resume: a killed writer leaves it.

The file has no `format` of its own: it is that of `config.json`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..disk.files import atomic_write, patiently
from ..disk.json_file import is_list, is_object
from ..errors import InputError
from ..names import LOG

Line = dict[str, Any]

FIELDS = (  # what else stands in a line is a term
    "step", "loss", "grad_norm", "lr", "timestep", "level", "gamma", "grad_norm_terms", "drift", "numbers",
)  # fmt: skip
TERM_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_TERMS = 32
LONGEST_LINE = 1 << 23  # bytes; some hundred are usual
MOST_BROKEN = 10_000  # lines that are no step
MOST_BYTES = 1 << 29  # of the file: a million steps and more
LARGEST = 3.5e38  # of float32, in which training computes
LAST_STEP = 999_999_999
JSON = json.JSONDecoder(parse_constant=lambda _: None)  # made once: `json.loads` would make one for every line
NUMBERS = (int, float)  # by their exact type, as a bool is an int as well


@dataclass(frozen=True)
class Log:
    """What can be read of a log."""

    lines: list[Line]  # one per step, rising
    left_out: list[int]  # numbers, from 1, of the lines that are no step of this run, or whose step stands again below
    cut: bool = False  # the last line has no end, as after a crash; it is not among `left_out`

    def notice(self) -> str:
        """One sentence about the lines that are left out; empty: there are none."""
        if not self.left_out:
            return ""
        stays = (
            "is left out, as unreadable or repeated, and stays"
            if len(self.left_out) == 1
            else ("are left out, as unreadable or repeated, and stay")
        )
        return f"{LOG} is damaged: {line_numbers(self.left_out)} {stays} in the file."

    def terms(self) -> list[str]:
        """The names of the loss terms in it, in the order in which they came."""
        names = dict.fromkeys(chain.from_iterable(self.lines))
        return [name for name in names if name not in FIELDS][:MOST_TERMS]

    def numbers(self) -> list[str]:
        """The names of whatever else was logged by name, likewise; none that is a term's."""
        names, others = dict.fromkeys(chain.from_iterable(map(numbers_of, self.lines))), ("loss", *self.terms())
        return [name for name in names if name not in others][:MOST_TERMS]

    def gap(self, step: int) -> str:
        """One sentence about the steps up to `step` that the log no longer has; empty: it has them all."""
        lost = step - sum(line["step"] <= step for line in self.lines)
        if not lost:
            return ""
        return f"{LOG} no longer has {lost} of the {step} steps that were trained: curves and report go without."


def terms_of(line: Line) -> Line:
    """The terms of the loss in a line of the log, by name; None: not computed in that step."""
    return {name: value for name, value in line.items() if name not in FIELDS}


def numbers_of(line: Line) -> Line:
    """Whatever else was logged by name in a line, likewise."""
    found: Line = line.get("numbers") or {}
    return found


def read_log(path: Path, bins: int | None = None) -> Log:
    """The log at `path`; without a file, an empty one.

    `bins`: how many the settings say. InputError: the file cannot be opened.
    """
    found = [(line, bool(raw.strip()), _is_cut(raw, line)) for raw, line in _read(path)]
    expected = _bins_of([line for line, _, _ in found if line is not None], bins)
    steps: dict[int, tuple[int, Line]] = {}
    left_out: list[int] = []
    for number, (line, is_filled, is_cut) in enumerate(found, start=1):
        if line is not None and len(line["gamma"]) == expected:
            left_out += [steps[line["step"]][0]] if line["step"] in steps else []
            steps[line["step"]] = number, line
        elif is_filled and not is_cut:
            left_out.append(number)
    lines = [steps[step][1] for step in sorted(steps)]
    return Log(lines, sorted(left_out), cut=bool(found) and found[-1][2])


def cut_log(path: Path, step: int, *, without: tuple[str, ...] = ()) -> bytes:
    """Cut the log back to `step` steps, as what came after them was not saved; the file's content then.

    `without`: fields that go, because what follows could not be compared with them. All other lines stay to the byte.
    """
    kept = [_without(raw, line, without) for raw, line in _read(path) if not _goes(raw, line, step)]
    text = b"".join(raw if raw.endswith(b"\n") else raw + b"\n" for raw in kept)
    if path.is_symlink() or not path.is_file() or path.read_bytes() != text:  # a link is replaced, not followed
        atomic_write(path, lambda draft: draft.write_bytes(text))
    return text


def line_numbers(numbers: list[int]) -> str:
    """`line 4`, `lines 4, 7`, `lines 4, 7, 8, 9, 10 and 3 more`."""
    shown = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"lines {shown}"


def add_to_line(path: Path, step: int, fields: Line) -> bytes:
    """Put fields into the line of a step; all other lines stay to the byte. The file's content then."""
    lines = ((raw, line if line is not None and line["step"] == step else None) for raw, line in _read(path))
    text = b"".join(raw if line is None else line_bytes({**line, **fields}) for raw, line in lines)
    atomic_write(path, lambda draft: draft.write_bytes(text))
    return text


def line_bytes(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def append(path: Path, raw: bytes) -> None:
    """Append whole lines. OSError: they could not be written."""
    with patiently(lambda: open(path, "ab")) as file:
        file.write(raw)


def _read(path: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Every line as it stands, and as a step where it is one. InputError: what no run has written, however broken."""
    if not os.path.lexists(path):
        return
    broken = 0
    try:
        if not path.is_file():  # a pipe would be waited for, a device has no end
            raise InputError(f"{path.name} cannot be read (it is no file): restore it, or move it away.")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path.name} is larger than any run's: restore it, or move it away to go on without.")
        with open(path, "rb") as file:
            for raw in file:
                line = _step(raw)
                broken += line is None
                if broken > MOST_BROKEN:
                    raise InputError(f"{path.name} is damaged all over: restore it, or move it away to go on without.")
                yield raw, line
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): give the folder of a training run.") from None


def _step(raw: bytes) -> Line | None:
    if len(raw) > LONGEST_LINE:
        return None
    try:
        line = JSON.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return line if is_object(line) and _is_step(line) else None


def _is_step(line: Line) -> bool:
    if type(line.get("step")) is not int or not 1 <= line["step"] <= LAST_STEP or "loss" not in line:
        return False
    terms, further = terms_of(line), numbers_of(line)
    if not is_object(further) or not _are_names(terms) or not _are_names(further):
        return False
    numbers = [*terms.values(), line["loss"], line.get("grad_norm"), line.get("lr")]
    lists = [line.get("timestep"), line.get("level", []), line.get("gamma")]  # without levels in older versions
    parts = [line.get("grad_norm_terms"), line.get("drift"), line.get("numbers")]
    return (
        _are_numbers(numbers)
        and all(is_list(items) and _are_numbers(items) for items in lists)
        and all(part is None or (is_object(part) and _are_numbers(part.values())) for part in parts)
    )


def _are_names(given: Collection[str]) -> bool:
    return len(given) <= MOST_TERMS and all(map(TERM_NAME.fullmatch, given))


def _are_numbers(values: Iterable[Any]) -> bool:
    """Finite as float32, or null; no NaN is. Written as a loop, which a long log takes half the time of a call each."""
    for value in values:
        if value is not None and not (type(value) in NUMBERS and -LARGEST <= value <= LARGEST):
            return False
    return True


def _bins_of(lines: list[Line], bins: int | None) -> int:
    counts = Counter(len(line["gamma"]) for line in lines)
    if bins in counts or not counts:
        return bins or 0
    return counts.most_common(1)[0][0]


def _is_cut(raw: bytes, line: Line | None) -> bool:
    return line is None and bool(raw.strip()) and not raw.endswith(b"\n")


def _goes(raw: bytes, line: Line | None, step: int) -> bool:
    return _is_cut(raw, line) or (line is not None and line["step"] > step)


def _without(raw: bytes, line: Line | None, names: tuple[str, ...]) -> bytes:
    if line is None or not any(name in line for name in names):
        return raw
    return line_bytes({name: value for name, value in line.items() if name not in names})

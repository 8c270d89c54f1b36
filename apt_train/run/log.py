"""Reads and writes `log.jsonl`, one line of JSON per step, including the rules for lines that are no step.

Resume, report and monitor share these rules:
  - A step is an object with an integer `step` from 1, and numbers where `StepEvent.log_line` has them. NaN is null.
  - If a step is logged twice, the last line counts. Steps are sorted, wherever they are in the file.
  - If lines differ in their number of timestep bins, those with the settings' number count, otherwise the majority.
  - Any other line is ignored, reported by its number, and kept in the file. The exception is an unfinished last line,
    which a killed writer leaves: the next resume removes it.

The file has no `format` of its own; that of `config.json` applies.
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

# Any other key of a line is a term.
FIELDS = ("step", "loss", "grad_norm", "lr", "timestep", "level", "gamma", "grad_norm_terms", "drift", "numbers")
TERM_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_TERMS = 32
LONGEST_LINE = 1 << 23  # bytes; a few hundred are usual
MOST_BROKEN = 10_000  # lines that are not a step
MOST_BYTES = 1 << 29  # of the file: enough for more than a million steps
LARGEST = 3.5e38  # of float32, which training computes in
LAST_STEP = 999_999_999
JSON = json.JSONDecoder(parse_constant=lambda _: None)  # made once: `json.loads` would make one for every line
NUMBERS = (int, float)  # by their exact type, as a bool is an int as well


@dataclass(frozen=True)
class Log:
    """What can be read from a log."""

    lines: list[Line]  # one per step, ascending
    left_out: list[int]  # 1-based numbers of lines that are not a step, or whose step is logged again later
    cut: bool = False  # the last line is unfinished, as after a crash; not in `left_out`

    def notice(self) -> str:
        """One sentence about the ignored lines; empty: there are none."""
        if not self.left_out:
            return ""
        lines, one = line_numbers(self.left_out), len(self.left_out) == 1
        are, stay = ("is", "stays") if one else ("are", "stay")
        return f"{LOG} is damaged: {lines} {are} left out, as unreadable or repeated, and {stay} in the file."

    def terms(self) -> list[str]:
        """The names of its loss terms, in order of appearance."""
        names = dict.fromkeys(chain.from_iterable(self.lines))
        return [name for name in names if name not in FIELDS][:MOST_TERMS]

    def numbers(self) -> list[str]:
        """The names of all other numbers logged by name, likewise, without those of terms."""
        names, others = dict.fromkeys(chain.from_iterable(map(numbers_of, self.lines))), ("loss", *self.terms())
        return [name for name in names if name not in others][:MOST_TERMS]

    def gap(self, step: int) -> str:
        """One sentence about steps up to `step` that are missing from the log; empty: it is complete."""
        lost = step - sum(line["step"] <= step for line in self.lines)
        if not lost:
            return ""
        return f"{LOG} lacks steps that were trained ({lost} of {step}): curves and report go without."


def terms_of(line: Line) -> Line:
    """The loss terms in a line of the log, by name; None: not computed in that step."""
    return {name: value for name, value in line.items() if name not in FIELDS}


def numbers_of(line: Line) -> Line:
    """The other numbers in a line of the log, likewise."""
    found: Line = line.get("numbers") or {}
    return found


def check_numbers(numbers: Line, terms: Collection[str]) -> None:
    """AssertionError: one of a step's other numbers could not be read back, or would be taken for a term."""
    for name, value in numbers.items():
        named, plain = TERM_NAME.fullmatch(name), value is None or type(value) in NUMBERS
        rule = "an int or float under a name of lower-case letters, digits and _ that no term has"
        assert named and plain and name not in ("loss", *terms), f"{name} = {value!r} cannot be logged: give {rule}"


def read_log(path: Path, bins: int | None = None) -> Log:
    """The log at `path`; empty if there is no file.

    `bins`: the settings' number of timestep bins. InputError: the file cannot be opened.
    """
    return _log_of(_read(path), bins)


def _log_of(lines: Iterable[tuple[bytes, Line | None]], bins: int | None) -> Log:
    found = [(line, bool(raw.strip()), _is_cut(raw, line)) for raw, line in lines]
    expected = _bins_of([line for line, _, _ in found if line is not None], bins)
    steps: dict[int, tuple[int, Line]] = {}
    left_out: list[int] = []
    for number, (line, is_filled, is_cut) in enumerate(found, start=1):
        if line is not None and len(line["gamma"]) == expected:
            left_out += [steps[line["step"]][0]] if line["step"] in steps else []
            steps[line["step"]] = number, line
        elif is_filled and not is_cut:
            left_out.append(number)
    kept = [steps[step][1] for step in sorted(steps)]
    return Log(kept, sorted(left_out), cut=bool(found) and found[-1][2])


def cut_log(path: Path, step: int, bins: int | None = None, *, without: tuple[str, ...] = ()) -> tuple[bytes, Log]:
    """Cut the log back to `step` steps, because later ones were not saved. Returns its new content, also as read.

    `bins`: as in `read_log`. `without`: fields to drop, because later values would not be comparable. All other lines
    stay byte for byte.
    """
    kept = [_without(raw, line, without) for raw, line in _read(path) if not _goes(raw, line, step)]
    text = b"".join(raw if raw.endswith(b"\n") else raw + b"\n" for raw, _ in kept)
    if path.is_symlink() or not path.is_file() or path.read_bytes() != text:  # a link is replaced, not followed
        atomic_write(path, lambda draft: draft.write_bytes(text))
    return text, _log_of(kept, bins)


def line_numbers(numbers: list[int]) -> str:
    """`line 4`, `lines 4, 7`, `lines 4, 7, 8, 9, 10 and 3 more`."""
    shown = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"lines {shown}"


def add_to_line(path: Path, step: int, fields: Line) -> bytes:
    """Add fields to the line of a step; all other lines stay byte for byte. Returns the file's new content."""
    lines = ((raw, line if line is not None and line["step"] == step else None) for raw, line in _read(path))
    text = b"".join(raw if line is None else line_bytes({**line, **fields}) for raw, line in lines)
    atomic_write(path, lambda draft: draft.write_bytes(text))
    return text


def line_bytes(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def append(path: Path, raw: bytes) -> None:
    """Append complete lines. OSError: writing failed."""
    with patiently(lambda: open(path, "ab")) as file:
        file.write(raw)


def _read(path: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Every raw line, and its step if it is one. InputError: no run can have written this file."""
    if not os.path.lexists(path):
        return
    broken = 0
    try:
        if not path.is_file():  # a pipe would block, a device has no end
            raise InputError(f"{path.name} cannot be read (it is not a file): restore it, or move it away.")
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
    lists = [line.get("timestep"), line.get("level", []), line.get("gamma")]  # older versions logged no levels
    parts = [line.get("grad_norm_terms"), line.get("drift"), line.get("numbers")]
    return (
        _are_numbers(numbers)
        and all(is_list(items) and _are_numbers(items) for items in lists)
        and all(part is None or (is_object(part) and _are_numbers(part.values())) for part in parts)
    )


def _are_names(given: Collection[str]) -> bool:
    return len(given) <= MOST_TERMS and all(map(TERM_NAME.fullmatch, given))


def _are_numbers(values: Iterable[Any]) -> bool:
    """Whether each is null or finite in float32."""
    return all(value is None or (type(value) in NUMBERS and -LARGEST <= value <= LARGEST) for value in values)


def _bins_of(lines: list[Line], bins: int | None) -> int:
    counts = Counter(len(line["gamma"]) for line in lines)
    if bins in counts or not counts:
        return bins or 0
    return counts.most_common(1)[0][0]


def _is_cut(raw: bytes, line: Line | None) -> bool:
    return line is None and bool(raw.strip()) and not raw.endswith(b"\n")


def _goes(raw: bytes, line: Line | None, step: int) -> bool:
    return _is_cut(raw, line) or (line is not None and line["step"] > step)


def _without(raw: bytes, line: Line | None, names: tuple[str, ...]) -> tuple[bytes, Line | None]:
    if line is None or not any(name in line for name in names):
        return raw, line
    kept = {name: value for name, value in line.items() if name not in names}
    return line_bytes(kept), kept

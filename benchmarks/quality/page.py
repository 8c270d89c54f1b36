"""Writes the tables of docs/benchmark.md and docs/benchmark/ from the committed units, between their markers.

    python -m benchmarks.quality.page

The prose around them is written by hand. A test compares the tables with the units.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from apt_train.disk.files import write_text

from .curves import BASELINE, curves_of, last_step
from .grids import GRIDS
from .indicator_study import across_table, temperature_table
from .motion import motion_table
from .snapshot_study import snapshot_table
from .stopping_study import stopping_table
from .store import RESULTS, read_units
from .tables import apart_table, bins_table, by_subject, level_table, short_table, step_table, variants_of

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "benchmark.md", *sorted((DOCS / "benchmark").glob("*.md")))
GROUPS, SUBJECTS = ("near", "far"), "subjects"
_NO_LEADING_ZERO = re.compile(r"(?<![\w.)])\.(?=\d)")  # variants were once named without it
_BLOCK = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every table made anew. KeyError: a marker names an unknown table."""
    return _BLOCK.sub(lambda block: f"<!-- table: {block[1]} -->\n{_table(block[1])}\n<!-- end -->", page)


def grids_shown(page: str) -> set[str]:
    """The grids whose tables the page shows."""
    return {block[1].split()[1] for block in _BLOCK.finditer(page)}


def _table(title: str) -> str:
    """`what grid`, e.g. `step verdict`, `level verdict 0.9`, or `level verdict near` for one group of subjects.

    `level verdict 0.9 against dco`, or `step verdict against dco`, compares with that variant. `subjects` in place of a
    group averages over seeds.
    """
    title, _, against = title.partition(" against ")
    what, name, *more = title.split()
    groups, pooled = [word for word in more if word in GROUPS], by_subject if SUBJECTS in more else dict
    level = [float(word) for word in more if word not in (*GROUPS, SUBJECTS)]
    units = [unit for unit in read_units(RESULTS / name, GRIDS[name]) if not groups or unit["unit"]["group"] in groups]
    curves = curves_of(units)
    waits = against in GRIDS[name].variants and against not in variants_of(curves)
    if not curves or waits:
        return "*(not run yet)*"
    last = last_step(curves)
    makers: dict[str, Callable[[], str]] = {
        "short": lambda: short_table(units, curves, last),
        "step": lambda: apart_table(curves, last, against) if against else step_table(units, curves, last),
        "level": lambda: level_table(curves, *level, against=against or BASELINE, pooled=pooled),
        "bins": lambda: bins_table(units, last),
        "motion": lambda: motion_table(units),
        "temperature": lambda: temperature_table(units),
        "across": lambda: across_table(units, last),
        "snapshots": lambda: snapshot_table(units),
        "stopping": lambda: stopping_table(units),
        "units": lambda: f"{len(units)} of {len(GRIDS[name].units())} units of the grid `{name}` have been run.",
    }
    return _NO_LEADING_ZERO.sub("0.", makers[what]())


def main() -> None:
    for path in PAGES:
        write_text(path, with_tables(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()

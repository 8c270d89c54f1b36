"""The search: hand-picked cases first, then hypothesis's, each kind of finding shrunk once and then known."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from .case import Case
from .outcome import Finding
from .worker import SECONDS, Worker

SLOW = ("hang", "memory", "died")  # too dear to shrink
LONGEST = 2_000  # characters of a case in a command; a longer one goes to a file
SHRINKING = 60  # seconds beyond the search's own time


@dataclass
class Hunt:
    """One target's search. `name`: of the target, a module of this package."""

    name: str
    target: ModuleType
    seed: int = 0
    tried: int = 0
    found: dict[str, tuple[Finding, Case]] = field(default_factory=dict)

    def run(self, *, seconds: float | None = None, examples: int = 100, picked: int | None = None) -> None:
        """Hand-picked cases, then batches of `examples` until the time is over; without a time one batch.

        `picked`: about so many of the hand-picked cases, spread over all; None: all.
        """
        with tempfile.TemporaryDirectory(prefix="apt-fuzz-sample-") as made:
            sample = Path(made).resolve()
            self.target.sample(sample)
            with self._worker(sample) as worker:
                end = time.monotonic() + (seconds if seconds is not None else 1e9)
                for case in _spread(self.target.hostile(), picked):
                    self._note(worker.judge(case), case)
                batch = 0
                while batch == 0 or (seconds is not None and time.monotonic() < end):
                    self._batch(worker, sample, batch, examples, end)
                    batch += 1

    def judge(self, case: Case) -> Finding | None:
        """One case alone."""
        with tempfile.TemporaryDirectory(prefix="apt-fuzz-sample-") as made:
            sample = Path(made).resolve()
            self.target.sample(sample)
            with self._worker(sample) as worker:
                return worker.judge(case)

    def report(self) -> str:
        """Each finding with its smallest case and the command that runs it again."""
        blocks = [
            f"{self.name}: {key}\n{finding.text.rstrip()}\n  case: {case.to_json()[:LONGEST]}\n"
            f"  again: python dev.py fuzz {self.name} --case {shlex.quote(_kept(self.name, case))}"
            for key, (finding, case) in self.found.items()
        ]
        return "\n\n".join(blocks)

    def _worker(self, sample: Path) -> Worker:
        return Worker(self.target.run, sample, getattr(self.target, "SECONDS", SECONDS))

    def _note(self, finding: Finding | None, case: Case) -> None:
        self.tried += 1
        if finding is not None:
            _, smallest = self.found.get(finding.key, (None, case))
            if len(case.to_json()) <= len(smallest.to_json()):
                self.found[finding.key] = finding, case

    def _batch(self, worker: Worker, sample: Path, batch: int, examples: int, end: float) -> None:
        """hypothesis shrinks what it has not seen before; what is known, or dear, counts as passed."""
        known, fresh = set(self.found), dict[str, type[Exception]]()

        def examine(case: Case) -> None:
            late = time.monotonic() - end
            if late > (SHRINKING if fresh else 0):
                return
            finding = worker.judge(case)
            if finding is not None and finding.key in known:
                finding = None
            self._note(finding, case)
            if finding is not None and finding.kind in SLOW:
                known.add(finding.key)
            elif finding is not None:
                raise fresh.setdefault(finding.key, type("Found", (Exception,), {}))(finding.key)

        search = _hypothesis(examine, self.target.cases(sample), self._seed(batch), examples)
        try:
            search()
        except Exception:  # a group of them where there are several kinds
            if not fresh:
                raise

    def _seed(self, batch: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.name}/{batch}".encode()).digest()[:8], "big")


def _hypothesis(
    examine: Callable[[Case], None], cases: SearchStrategy[Case], number: int, examples: int
) -> Callable[[], None]:
    rules = settings(
        max_examples=examples, database=None, deadline=None, derandomize=False, print_blob=False,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(cast("Any", HealthCheck)),
    )  # fmt: skip
    return seed(number)(rules(given(cases)(examine)))


def _spread(cases: list[Case], most: int | None) -> list[Case]:
    return cases if most is None else cases[:: -(-len(cases) // most)]


def _kept(name: str, case: Case) -> str:
    """The case itself, or where it was written to."""
    text = case.to_json()
    if len(text) <= LONGEST:
        return text
    path = Path(tempfile.gettempdir()) / f"apt-fuzz-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text)
    return str(path)

"""`python dev.py fuzz [--seconds N] [--seed S] [TARGET ...]`: hunt; exit code 1 where something was found.

`--case TEXT` (or a file that holds it) runs one case of one target again, as a finding names it.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from .case import Case
from .hunt import Hunt
from .targets import TARGETS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=420, help="in all, shared by the targets (default: 420)")
    parser.add_argument("--seed", type=int, help="what to draw from (default: another each time, which is printed)")
    parser.add_argument("--case", help="one case of one target, as JSON or a file of it")
    options = parser.parse_args(arguments)
    names = options.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}: say {', '.join(TARGETS)}")
    if options.case is not None:
        return _again(names[0], options.case)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds / len(names):g} s for each of {', '.join(names)}", flush=True)
    return max(_hunt(name, seed, options.seconds / len(names)) for name in names)


def _hunt(name: str, seed: int, seconds: float) -> int:
    hunt = Hunt(name, TARGETS[name], seed)
    hunt.run(seconds=seconds)
    print(f"{name}: {hunt.tried} cases, {len(hunt.found)} findings", flush=True)
    if hunt.found:
        print(hunt.report(), end="\n\n", flush=True)
    return 1 if hunt.found else 0


def _again(name: str, text: str) -> int:
    case = Case.from_json(text if text.lstrip().startswith("{") else Path(text).read_text())
    finding = Hunt(name, TARGETS[name]).judge(case)
    print(f"{finding.key}\n{finding.text}" if finding else f"{name}: as it should be")
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())

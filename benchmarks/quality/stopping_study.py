"""What a run that stops by itself gives up and gains: the trainer's rules replayed on committed runs.

    python -m benchmarks.quality.stopping_study

Compared with always the last snapshot, by rule and variant. The snapshots are at steps 50, 100, 200, 400 and 800, so a
rule can end a run only there. The drift is from the benchmark's own, larger probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apt_train.training import stopping

from .curves import Curve, Mean, curves_of
from .grids import GRIDS
from .indicator_study import Bins, bins_of, said
from .store import RESULTS, read_units

RULES = ("drift", "settled")
MEASURES = {"fidelity": "subject fidelity", "kept": "kept", "leak": "leak", "fid": "FID"}


def stopping_table(units: Sequence[dict[str, Any]]) -> str:
    """A row per rule and variant: how many runs it ends, and for those the chosen snapshot minus the last."""
    curves = {(*curve.key, curve.variant): curve for curve in curves_of(units)}
    runs: dict[tuple[str, int, str], list[Bins]] = {}
    for item in bins_of(units):
        runs.setdefault(item.unit, []).append(item)
    head = ["rule", "variant", "ended", "steps saved", *(f"{title}, minus the last's" for title in MEASURES.values())]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for rule in RULES:
        for variant in dict.fromkeys(key[2] for key in runs):
            chosen = [(curves[key], bins) for key, bins in runs.items() if key[2] == variant and key in curves]
            lines.append(_row(rule, variant, chosen))
    return "\n".join(lines)


def _row(rule: str, variant: str, chosen: list[tuple[Curve, list[Bins]]]) -> str:
    ended = [(curve, found) for curve, bins in chosen if (found := _ended(rule, bins)) is not None]
    last = [float(curve.steps.max()) for curve, _ in ended]
    early = [(curve, found) for (curve, found), end in zip(ended, last, strict=True) if found.recommended < end]
    saved = Mean.of([1 - found.step / end for (_, found), end in zip(ended, last, strict=True)])
    costs = [_said(Mean.of([_change(curve, name, found.recommended) for curve, found in early])) for name in MEASURES]
    cells = [rule, variant, f"{len(ended)} of {len(chosen)}", f"{saved.mean:.0%}" if saved.n else "-", *costs]
    return "| " + " | ".join(cells) + " |"


def _change(curve: Curve, name: str, step: int) -> float:
    """A measure at a step minus its value at the run's last step."""
    return curve.at_step(name, step) - curve.at_step(name, int(curve.steps.max()))


def _said(mean: Mean) -> str:
    return said(mean) if mean.n else "-"


def _ended(rule: Any, bins: list[Bins]) -> stopping.Ending | None:
    measured = [
        {"step": item.step, "subject": float(item.own_drift[1:].mean()), "ratio": item.drift_ratio}
        for item in sorted(bins, key=lambda item: item.step)
    ]
    return stopping.ending(rule, measured)


def main() -> None:
    for name in ("beside", "longer"):
        print(f"{name}\n\n{stopping_table(read_units(RESULTS / name, GRIDS[name]))}\n")


if __name__ == "__main__":
    main()

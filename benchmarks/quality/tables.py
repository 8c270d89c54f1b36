"""The figures of a grid as Markdown tables and as plain numbers for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .curves import BASELINE, LEVEL, LEVELS, Curve, Mean, at_level, at_step, ceilings_of, differences, floors_of

MEASURES = {
    "fidelity": ("subject fidelity", 1),
    "recognised": ("recognised", 1),
    "kept": ("kept", 1),
    "aligned": ("prompt words", 1),
    "aligned_elsewhere": ("words elsewhere", 1),
    "fid": ("FID", -1),
    "precision": ("precision", 1),
    "recall": ("recall", 1),
    "fid_scene": ("FID, scene", -1),
    "drift_other": ("drift x 1000", -1),
    "drift_class": ("drift of the class x 1000", -1),
    "copied": ("copied", -1),
    "leak": ("leak", -1),
    "memorised": ("memorised x 1000", -1),
    "clip_i": ("CLIP-I", 1),
    "hps": ("HPS", 1),
    "hps_elsewhere": ("HPS elsewhere", 1),
}
"""Measure -> its heading, and whether more of it is better (1) or worse (-1)."""
SHORT = ("fidelity", "kept", "fid", "drift_other", "drift_class", "memorised")
"""The measures that the first page shows."""
ByUnit = dict[tuple[str, int], float]
"""One measure, keyed by subject and seed."""
THOUSANDS = ("drift_other", "drift_class", "memorised")


def step_table(units: Sequence[dict[str, Any]], curves: Sequence[Curve], step: int) -> str:
    """Means with 95% intervals at one step, one row per variant. The floor and the true pictures come first."""
    names = _known(curves)
    bounds = {"prior, other seeds": floors_of(units), "true pictures": ceilings_of(units)}
    rows = [_row(title, {name: bound.get(name) for name in names}) for title, bound in bounds.items() if bound]
    for variant in variants_of(curves):
        rows.append(_row(variant, step_means(curves, variant, names, step)))
    return _table("variant", names, rows)


def short_table(units: Sequence[dict[str, Any]], curves: Sequence[Curve], step: int, level: float = 0.9) -> str:
    """The first page's measures at one step, and how many runs reached `level` of the baseline's rise in fidelity."""
    names = [name for name in SHORT if name in _known(curves)]
    bounds = {"prior, other seeds": floors_of(units), "true pictures": ceilings_of(units)}
    rows = [
        _row(title, {name: bound.get(name) for name in names}, shown="-") for title, bound in bounds.items() if bound
    ]
    for variant in variants_of(curves):
        steps = list(at_level(curves, variant, "step", level).values())
        reached = f"{sum(math.isfinite(found) for found in steps)} of {len(steps)}"
        rows.append(_row(variant, step_means(curves, variant, names, step), shown=reached))
    return _table("variant", names, rows, count=f"reached {level:.0%}")


def level_table(
    curves: Sequence[Curve],
    level: float = LEVEL,
    against: str = BASELINE,
    pooled: Callable[[ByUnit], ByUnit] = dict,
) -> str:
    """Paired differences to one variant at equal fidelity. Bold: the interval excludes zero.

    `level` is a share of the baseline's rise in fidelity, whichever variant is `against`. `pooled` may be `by_subject`.
    n: how many pairs reached it, out of all. If some run did not, the others are the easy ones and nothing is bold.
    KeyError: no variant is called `against`.
    """
    names = ["step", *(name for name in _known(curves) if name not in ("fidelity", "recognised"))]
    if against not in (BASELINE, *variants_of(curves)):  # an unfinished grid may lack the baseline
        raise KeyError(against)
    rows = []
    for variant in variants_of(curves):
        if variant != against:
            found = level_differences(curves, variant, names, level, pooled, against)
            runs = at_level(curves, variant, "step", level)
            reached = level_differences(curves, variant, ["step"], level, against=against)["step"].n
            rows.append(_row(variant, found, of=len(pooled(runs)), bold=reached == len(runs)))
    return _table(f"variant - {against}", names, rows)


def apart_table(curves: Sequence[Curve], step: int, against: str) -> str:
    """Paired differences to one variant at one step. Bold: the interval excludes zero, and each run has its pair."""
    names, rows = _known(curves), []
    for variant in variants_of(curves):
        if variant != against:
            pairs = len(at_step(curves, variant, "fidelity", step))
            found = {
                name: Mean.of(
                    [*differences(*(at_step(curves, one, name, step) for one in (variant, against))).values()]
                )
                for name in names
            }
            rows.append(_row(variant, found, of=pairs, bold=found["fidelity"].n == pairs))
    return _table(f"variant - {against}", names, rows)


def bins_table(units: Sequence[dict[str, Any]], step: int, kind: str = "other") -> str:
    """Drift (x 1000) by bin of the noise level at one step, on one kind of prompt. Means over units, clean first."""
    found: dict[str, list[list[float]]] = {}
    for unit in units:
        for snapshot in unit["snapshots"]:
            if snapshot["step"] == step and "drift" in snapshot:
                found.setdefault(unit["unit"]["variant"], []).append(snapshot["drift"][kind])
    count = max((len(rows[0]) for rows in found.values()), default=0)
    lines = [["variant", "n", *(str(b) for b in range(count))], ["---", *["---:"] * (count + 1)]]
    for variant, rows in found.items():
        means = [Mean.of(column).mean for column in zip(*rows, strict=True)]
        lines.append([variant, f"{len(rows)}", *(f"{1000 * mean:.2f}" for mean in means)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def step_means(curves: Sequence[Curve], variant: str, names: Sequence[str], step: int) -> dict[str, Mean]:
    """One variant's measures at one step."""
    return {name: Mean.of([*at_step(curves, variant, name, step).values()]) for name in names}


def level_differences(
    curves: Sequence[Curve],
    variant: str,
    names: Sequence[str],
    level: float = LEVEL,
    pooled: Callable[[ByUnit], ByUnit] = dict,
    against: str = BASELINE,
) -> dict[str, Mean]:
    """Paired differences between two variants at the same fidelity. `pooled` may average over seeds."""

    def found(name: str) -> ByUnit:
        return pooled(differences(*(at_level(curves, one, name, level) for one in (variant, against))))

    return {name: Mean.of([*found(name).values()]) for name in names}


def numbers(units: Sequence[dict[str, Any]], curves: Sequence[Curve]) -> dict[str, Any]:
    """All figures of the tables as plain numbers, also for the other levels and steps."""
    names, variants = _known(curves), variants_of(curves)
    others = [variant for variant in variants if variant != BASELINE]
    steps = sorted({int(step) for curve in curves for step in curve.steps[curve.sampled()]})

    def by_level(means: Callable[[str, float], dict[str, Mean]]) -> dict[str, Any]:
        return {other: {level: _plainly(means(other, level)) for level in LEVELS} for other in others}

    return {
        "floor": _plainly(floors_of(units)),
        "at_step": {
            variant: {step: _plainly(step_means(curves, variant, names, step)) for step in steps}
            for variant in variants
        },
        "at_level": by_level(lambda other, level: level_differences(curves, other, ["step", *names], level)),
        "at_level_by_subject": by_level(
            lambda other, level: level_differences(curves, other, names, level, by_subject)
        ),
    }


def by_subject(values: ByUnit) -> ByUnit:
    """Means over each subject's seeds, which are not independent."""
    subjects = dict.fromkeys(subject for subject, _ in values)
    return {(name, 0): Mean.of([v for (s, _), v in values.items() if s == name]).mean for name in subjects}


def variants_of(curves: Sequence[Curve]) -> list[str]:
    """The variants, in order of first appearance."""
    return list(dict.fromkeys(curve.variant for curve in curves))


def _known(curves: Sequence[Curve]) -> list[str]:
    """The measures that these curves have, in the table's order."""
    return [name for name in MEASURES if any(name in curve.values for curve in curves)]


def _row(
    title: str, means: Mapping[str, Mean | None], of: int | None = None, bold: bool = False, shown: str = ""
) -> list[str]:
    """`of`: number of possible pairs (differences). `bold`: mark clear cells. `shown`: replaces the count."""
    count = max((mean.n for mean in means.values() if mean is not None), default=0)
    signed = of is not None
    shown = shown or (f"{count}" if of is None else f"{count} of {of}")
    return [title, shown, *(_cell(name, mean, signed, bold) for name, mean in means.items())]


def _cell(name: str, mean: Mean | None, signed: bool, bold: bool) -> str:
    if mean is None or mean.n == 0 or not math.isfinite(mean.mean):
        return "-"
    scale = 1000 if name in THOUSANDS else 1
    digits = 0 if name == "step" else 1 if name in ("fid", "fid_scene") else 2 if scale > 1 else 3
    text = f"{scale * mean.mean:{'+' if signed else ''}.{digits}f}"
    if mean.n > 1:
        text += f" ±{scale * mean.half:.{digits}f}"
    return f"**{text}**" if bold and mean.clear else text


def _table(first: str, names: Sequence[str], rows: list[list[str]], count: str = "n") -> str:
    headings = ["step reached" if name == "step" else MEASURES[name][0] for name in names]
    lines = [[first, count, *headings], ["---", "---:", *("---:" for _ in names)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plainly(means: Mapping[str, Mean]) -> dict[str, Any]:
    return {name: _plain(mean) for name, mean in means.items()}


def _plain(mean: Mean) -> dict[str, float | int | None]:
    """With None for NaN, which JSON lacks."""
    return {
        "mean": None if mean.n == 0 else float(f"{mean.mean:.5g}"),
        "half": None if mean.n < 2 else float(f"{mean.half:.3g}"),
        "n": mean.n,
    }

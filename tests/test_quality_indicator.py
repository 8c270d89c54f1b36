"""The benchmark's questions about the indicator: replayed temperatures, and rules that choose a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt_train.config import TrainConfig
from apt_train.training.indicator import OverfitIndicator
from apt_train.verdict.run_log import log_arrays
from apt_train.verdict.run_summary import summarize
from benchmarks.quality import page
from benchmarks.quality.curves import Curve
from benchmarks.quality.grids import GRIDS
from benchmarks.quality.indicator_rule import indicated_snapshot
from benchmarks.quality.indicator_study import Bins, across_table, bins_of, temperature_table
from benchmarks.quality.motion import motion_table
from benchmarks.quality.snapshot_study import (
    RULES,
    drift_at_most,
    indicated,
    relative_gap,
    risen,
    snapshot_table,
    worth,
)
from benchmarks.quality.store import RESULTS
from tests.synthetic_run import plausible_log, write_run


def bins(step: int, gain: float, heldout: float = 0.0, ratio: float = 0.1) -> Bins:
    prior = np.linspace(0.3, 0.01, 10)
    own = np.linspace(0.1, 0.01, 10)
    other = np.array([9.0, *ratio * own[1:]])  # what happens in the cleanest bin does not count
    unit = ("s", 0, "dreambooth")
    return Bins(unit, step, np.zeros(10), prior, gain * prior, heldout * prior, other, own)


@pytest.mark.parametrize("temperature", [10.0, 1000.0, "auto"])
def test_a_replayed_temperature_is_the_indicators_own_formula(temperature: Any) -> None:
    item = bins(100, 0.2)
    indicator = OverfitIndicator(temperature=temperature)
    times = torch.arange(10) * 100
    indicator.update(times, torch.from_numpy(item.prior), torch.from_numpy(item.prior - item.gain))
    assert item.gamma_at(temperature) == pytest.approx(indicator.gamma.numpy(), abs=1e-6)


def test_what_was_memorised_is_what_heldout_pictures_do_not_share() -> None:
    item = bins(100, 0.2, heldout=0.05)
    assert item.memorised_share == pytest.approx(np.full(10, 0.15))
    assert item.learned_share == pytest.approx(np.full(10, 0.05))


@pytest.fixture
def curve() -> Curve:
    values = {
        "fidelity": [0.1, 0.3, np.nan, 0.5, 0.6],
        "kept": [0.0, 0.2, np.nan, 0.5, 0.6],
        "leak": [0.0, 0.0, np.nan, 0.1, 0.7],
        "drift_class": [0.0, 0.01, 0.02, 0.03, 0.1],
        "drift_subject": [0.0, 0.01, 0.03, 0.06, 0.1],
        "drift_other": [0.0, 0.002, 0.01, 0.02, 0.08],
    }
    steps = np.array([0, 100, 150, 200, 400])
    return Curve("s", "near", 0, "dreambooth", steps, {k: np.array(v) for k, v in values.items()}, recommended=150)


def test_rules_choose_among_the_snapshots_that_were_drawn(curve: Curve) -> None:
    steps, gains, ratios = (100, 150, 200, 400), (0.1, 0.15, 0.2, 0.4), (0.2, 0.1, 0.15, 0.35)
    runs = [bins(step, gain, ratio=ratio) for step, gain, ratio in zip(steps, gains, ratios, strict=True)]
    assert worth(curve, 1.0) == pytest.approx({100: 0.2, 200: 0.4, 400: -0.1})
    assert worth(curve, 0.5) == pytest.approx({100: 0.2, 200: 0.45, 400: 0.25})
    assert RULES["always the last"](curve, runs) == 400
    assert indicated(curve, runs) == 100
    assert relative_gap(0.16)(curve, runs) == 100 and relative_gap(0.25)(curve, runs) == 200
    assert relative_gap(0.05)(curve, runs) == 100, "where all are above the limit, the earliest"
    assert drift_at_most("class", 0.03)(curve, runs) == 200 and drift_at_most("other", 0.03)(curve, runs) == 200
    assert runs[0].drift_ratio == pytest.approx(0.2)
    assert risen(1.2)(curve, runs) == 200, "the lowest of the drawn ones is .15, at 200"
    assert risen(3)(curve, runs) == 400 and risen(2)(curve, runs) == 200
    assert RULES["most specific drift"](curve, runs) == 200


@pytest.mark.parametrize(
    ("changes", "step"),
    [({}, 500), ({"snapshots": [700, 1000]}, 700), ({"ceiling": (0.6, 0.2)}, 1000), ({"rise": 10}, 1000)],
    ids=["before most are near 1", "none that early", "most are not near 1", "too early to say anything"],
)
def test_the_snapshot_that_the_indicator_alone_would_choose(tmp_path: Path, changes: dict, step: int) -> None:
    snapshots = changes.pop("snapshots", [250, 500, 750, 1000])
    write_run(tmp_path, plausible_log(1000, **{"rise": 100.0, "ceiling": (0.99, 0.97), **changes}))
    config = TrainConfig(class_word="toy", steps=1000)
    assert indicated_snapshot(summarize(log_arrays(tmp_path / "log.jsonl"), config, snapshots=snapshots)) == step


def unit(variant: str, gamma: list[list[float]] | None) -> dict[str, Any]:
    losses = {name: [0.1] * 10 for name in ("training", "augmented", "heldout")}
    score = {"fidelity": 0.5, "kept": 0.4, "leak": 0.1}
    about = {"subject": "s", "group": "near", "seed": 0, "variant": variant}
    if variant == "prior":
        return {"unit": about, "snapshots": [{"step": 0, "prior_losses": losses, "score": {**score, "fidelity": 0.1}}]}
    tuned = {**losses, "training": [0.08] * 10}
    drift = {name: [0.01] * 10 for name in ("subject", "class", "other")}
    snapshot = {"step": 10, "losses": tuned, "drift": drift, "score": score}
    return {"unit": about, "gamma": gamma, "recommended": 10, "snapshots": [snapshot]}


def test_runs_without_an_indicator_are_left_out() -> None:
    units = [unit("prior", None), unit("dreambooth", [[0.5] * 10]), unit("t-lora", [[0.0] * 10])]
    found = bins_of(units)
    assert [item.unit[2] for item in found] == ["dreambooth"]
    assert found[0].relative == pytest.approx(np.full(10, 0.2))
    assert "(n 1)" in snapshot_table(units)
    assert "| T auto | 0.63 |" in temperature_table(units)  # 1 - exp(-5 x .2)


def test_gamma_is_compared_between_runs_of_a_subject() -> None:
    def run(variant: str, gamma: float, memorised: float) -> dict[str, Any]:
        made = unit(variant, [[gamma] * 10])
        made["snapshots"][0]["losses"]["training"] = [0.1 - memorised] * 10
        return made

    units = [unit("prior", None), run("a", 0.2, 0.01), run("b", 0.5, 0.02), run("c", 0.9, 0.03)]
    agrees = across_table(units, 10).splitlines()
    assert len(agrees) == 13 and agrees[2].startswith("| 0 | 3 | 1.00") and agrees[-1].startswith("| mean | 3 | 1.00")
    other_scale = {**run("d", 0.9, 0.0), "settings": {"apt": {"temperature": "auto"}}}
    assert across_table([*units, other_scale], 10).splitlines()[-1].startswith("| mean | 3 | 1.00")
    units[3] = run("c", 0.1, 0.03)
    assert across_table(units, 10).splitlines()[-1].startswith("| mean | 3 | -0.50")


def test_the_way_of_the_lora_is_compared_with_dreambooths() -> None:
    def run(variant: str, moved: float) -> dict[str, Any]:
        motion = [{"step": 100, "gradient": 3 * moved, "moved": moved, "gamma": 0.5}]
        return {"unit": {"subject": "s", "seed": 0, "variant": variant}, "motion": motion}

    table = motion_table([run("dreambooth", 2.0), run("weight", 0.5)]).splitlines()
    assert table[0].startswith("| variant | n | mean gamma, 100 | gradient, 100 | moved, 100 |")
    assert table[3].startswith("| weight | 1 | 0.50 | 0.25 ") and table[2].count("| 1 ±") == 2


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_a_page_shows_what_the_units_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- table:") == text.count("<!-- end -->")
    assert page.with_tables(text) == text, "run `python -m benchmarks.quality.page`"


def test_every_unit_that_is_kept_is_shown_on_a_page() -> None:
    """Units of a variant, subject or grid that is gone leave with it."""
    shown = set().union(*(page.grids_shown(path.read_text(encoding="utf-8")) for path in page.PAGES))
    assert {folder.name for folder in RESULTS.iterdir()} == shown == set(GRIDS)
    reports = {"table.md", "summary.json", "figure.png"}
    for name, grid in GRIDS.items():
        units = {f"{unit.name}.json" for unit in grid.units()}
        assert {file.name for file in (RESULTS / name).iterdir()} <= units | reports, name

"""The report of a run: numbers against hand computation, a verdict that follows the curves, pictures, bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from apt_train.cli import main
from apt_train.config import AptConfig, OptimizerConfig, TrainConfig
from apt_train.disk import files
from apt_train.errors import InputError
from apt_train.palette import Legend, diverging, heat
from apt_train.report import write, write_report
from apt_train.report.attention_tiles import attention_tiles
from apt_train.report.grid import fit_label, font, labelled_grid
from apt_train.report.live_images import heat_image, loss_image
from apt_train.report.plots import as_picture, glance_figure, overview_figure, part_figure
from apt_train.run.attention_file import read_maps
from apt_train.training.capture import merge_layers
from apt_train.training.terms import Preservation, terms_of
from apt_train.verdict.run_files import read_run
from apt_train.verdict.run_log import block_means, log_arrays, moving_average
from apt_train.verdict.run_summary import evened_denoising, summarize
from apt_train.verdict.words import paragraph
from apt_train.wording import bin_names
from tests.blank_figures import leave_blank
from tests.damaged_runs import DAMAGES, Damage
from tests.synthetic_run import plausible_log, plausible_maps, write_attention, write_run
from tests.training import run


@pytest.fixture(scope="module", autouse=True)
def blank_figures() -> None:
    """They are drawn here: how they look is what is tested."""


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the files count, and not what they show."""
    leave_blank(monkeypatch.setattr)


def told(folder: Path, lines, config: TrainConfig | None = None) -> str:
    """The verdict on these log lines."""
    write_run(folder, lines, config)
    config = config or TrainConfig(class_word="toy", steps=lines[-1]["step"])
    return paragraph(summarize(log_arrays(folder / "log.jsonl"), config))


def plain_line(step: int, gamma: Sequence[float | None], **changes) -> dict:
    line = {
        "step": step, "loss": 1.0, "denoising": 0.5, "stabilization": 0.2, "alignment": 0.1, "grad_norm": 0.5,
        "lr": 5e-5, "timestep": [100], "gamma": gamma,
    }  # fmt: skip
    return line | changes


def colours_in(picture: Image.Image) -> int:
    return len(picture.convert("RGB").getcolors(1 << 24) or [])


# --- the whole report ---------------------------------------------------------------------------------------------


def test_a_run_gets_pictures_tables_and_a_verdict(tmp_path) -> None:
    labels: list[str] = [*"<start> a photo of toy_subject on grass <end> <rest>".split()]
    write_run(tmp_path, plausible_log(300))
    write_attention(tmp_path, labels, with_picture=True)
    (tmp_path / "previews").mkdir()
    for name in ("step_000100_0_tuned", "step_000300_0_tuned", "step_000300_0_prior", "step_000300_10_tuned"):
        Image.new("RGB", (8, 8)).save(tmp_path / "previews" / f"{name}.png")
    report = write_report(tmp_path)
    assert report == tmp_path / "report.md"
    text = report.read_text(encoding="utf-8")
    sizes = {"indicator.png": (1300, 480), "losses.png": (1300, 660), "balance.png": (1300, 440)}
    for name, size in sizes.items():
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size
            assert colours_in(picture) > 100
        assert f"]({name})" in text
    assert "](attention.png)" in text and "step_000100" not in text
    assert "| ![prior](previews/step_000300_0_prior.png) | ![tuned](previews/step_000300_0_tuned.png) |" in text
    assert "step_000300_10_tuned.png" in text
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["format"] == 1 and values["steps_done"] == 300 and values["verdict"] in text
    assert "| 0.0-0.1 |" in text and "| stabilization |" in text


def test_a_run_of_the_trainer_itself_is_reported(tmp_path) -> None:
    run(steps=4, preview_every=4, snapshot_every=2, balance_every=2, output_dir=tmp_path / "run")
    report = write_report(tmp_path / "run")
    text = report.read_text(encoding="utf-8")
    for name in ("indicator.png", "drift.png", "losses.png", "balance.png", "attention.png", "filmstrip.png"):
        assert f"]({name})" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) == 8 and all((tmp_path / "run" / file).is_file() for file in linked)
    values = json.loads((tmp_path / "run" / "report.json").read_text())
    assert values["indicator_measured"] and len(values["bins"]) == 10 and values["snapshots"] == [2, 4]
    assert set(values["balance"]) == {"denoising", "stabilization", "alignment"}


def test_the_same_run_gives_the_same_report(tmp_path) -> None:
    names = ("report.md", "report.json", "indicator.png", "losses.png", "balance.png")
    write_report(write_run(tmp_path, plausible_log(120)))
    before = [(tmp_path / name).read_bytes() for name in names]
    write_report(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_a_backend_that_matplotlib_does_not_know_keeps_no_report_from_being_written(tmp_path) -> None:
    """An old `export MPLBACKEND=Qt4Agg` is still in some profiles."""
    command = [sys.executable, "-m", "apt_train", "report", str(write_run(tmp_path, plausible_log(5)))]
    done = subprocess.run(command, env=os.environ | {"MPLBACKEND": "Qt4Agg"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "losses.png").exists()


@pytest.mark.parametrize("tried_before", [False, True])
def test_nor_in_a_program_that_calls_the_package_where_others_draw_too(tmp_path, tried_before: bool) -> None:
    """As the nodes do in a host that was started from a notebook, after another pack had tried and failed."""
    code = f"""if True:
        import os, contextlib
        if {tried_before}:
            with contextlib.suppress(ValueError):
                import matplotlib
                raise SystemExit("matplotlib knows it: name another one here")
        from apt_train.report import write_report
        from apt_train.report.typeface import font
        import apt_train.lora_check.sheet
        print(font(12, "\u0448").path)
        write_report({str(write_run(tmp_path, plausible_log(5)))!r})
        print(os.environ["MPLBACKEND"])"""
    environment = os.environ | {"MPLBACKEND": "Qt4Agg", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "losses.png").exists()
    assert "DejaVuSans" in done.stdout and done.stdout.endswith("Qt4Agg\n")


def test_a_backend_that_matplotlib_knows_stays_in_force(tmp_path) -> None:
    code = "import apt_train.report.plots, matplotlib; print(matplotlib.get_backend())"
    environment = os.environ | {"MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "svg\n"


def test_what_the_user_has_set_in_matplotlib_changes_no_figure(tmp_path) -> None:
    """As by a matplotlibrc with LaTeX, for which a run was called damaged where there is none."""

    def drawn(name: str) -> bytes:
        return (write_report(write_run(tmp_path / name, plausible_log(5))).parent / "indicator.png").read_bytes()

    expected, record = drawn("plain"), read_run(tmp_path / "plain")
    expected_glance = as_picture(glance_figure(record), 400).tobytes()
    theirs: Any = {"text.usetex": True, "savefig.dpi": 2000, "axes.facecolor": "black", "font.size": 40}
    with matplotlib.rc_context(theirs):
        assert drawn("styled") == expected
        assert as_picture(glance_figure(record), 400).tobytes() == expected_glance


def test_matplotlib_is_left_as_it_was(tmp_path) -> None:
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    write_report(write_run(tmp_path, plausible_log(5)))
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend


@pytest.mark.usefixtures("blank")
def test_a_figure_of_an_earlier_report_does_not_outlive_its_numbers(tmp_path) -> None:
    write_report(write_run(tmp_path, plausible_log(100)))
    assert (tmp_path / "balance.png").exists()
    text = write_report(write_run(tmp_path, plausible_log(100, balance_every=0))).read_text(encoding="utf-8")
    assert not (tmp_path / "balance.png").exists() and "balance.png" not in text


@pytest.mark.usefixtures("blank")
def test_a_report_replaces_links_and_never_writes_through_them(tmp_path) -> None:
    write_run(tmp_path / "run", plausible_log(5, balance_every=1))
    write_report(tmp_path / "run")
    written = {path.name for path in (tmp_path / "run").iterdir()} - {"config.json", "log.jsonl"}
    assert {"report.md", "report.json", "losses.png"} <= written
    (tmp_path / "mine").write_text("the user's")
    for name in written:
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    write_report(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "the user's"
    assert not any((tmp_path / "run" / name).is_symlink() for name in written)


def test_a_report_that_cannot_be_written_says_so_and_leaves_the_old_one_whole(tmp_path, monkeypatch) -> None:
    write_report(write_run(tmp_path, plausible_log(20)))
    write_run(tmp_path, plausible_log(30))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(InputError, match=r"png could not be written to .*disk is full"):
        write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(plausible_log(1), id="one step"),
        pytest.param(plausible_log(1, balance_every=1), id="one step with balance"),
        pytest.param(plausible_log(7, lazy=4, balance_every=2), id="lazy prior"),
        pytest.param(plausible_log(4000, lazy=3, bins=25), id="thousands of steps"),
        pytest.param(plausible_log(60, bins=1), id="one bin"),
        pytest.param([plain_line(1, [], denoising=None, stabilization=None, alignment=None)], id="null terms"),
        pytest.param(
            [plain_line(1, [0.1], loss=float("nan"), denoising=float("nan"), grad_norm=float("inf"))],
            id="not a number",
        ),
        pytest.param(
            [plain_line(s, [0.1] * 2, grad_norm_terms={"denoising": 0.0, "alignment": None}) for s in (1, 2)],
            id="no gradient",
        ),
        pytest.param([plain_line(1, [0.1, 0.1]), plain_line(2, [None, 0.1])], id="no gamma"),
    ],
)
def test_odd_runs_get_a_report_too(tmp_path, lines) -> None:
    write_report(write_run(tmp_path, lines))
    with Image.open(tmp_path / "losses.png") as picture:
        assert colours_in(picture) > 10
    values = json.loads(
        (tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    assert values["steps_done"] == lines[-1]["step"]


@pytest.mark.skipif(os.name == "nt", reason="pipes, devices and links")
@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_a_damaged_run_gets_a_report_or_a_sentence(tmp_path, monkeypatch, capsys, damage: Damage) -> None:
    """Figures apart, as drawing them is slow."""
    monkeypatch.setattr(write, "_draw", lambda *_: {})
    write_run(tmp_path, plausible_log(30, bins=5), TrainConfig(class_word="toy", steps=30, apt=AptConfig(bins=5)))
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "num_timesteps": 1000, **stored}))
    damage(tmp_path)
    began = time.process_time()
    code = main(["report", str(tmp_path)])
    assert time.process_time() - began < 5
    told = capsys.readouterr().err
    assert code in (0, 2) and (told == "") == (code == 0)
    if code == 2:
        assert told.startswith("apt-train: ") and told.endswith(".\n") and told.count("\n") == 1
        assert not (tmp_path / "report.md").exists()


# --- numbers ------------------------------------------------------------------------------------------------------


def test_numbers_equal_hand_computed_ones(tmp_path) -> None:
    """20 steps, 2 bins: the low one at 0.95 from step 6 on, the high one at step / 100."""
    lines = []
    for step in range(1, 21):
        gamma = [0.95 if step >= 6 else 0.2, step / 100]
        lines.append(plain_line(step, gamma, denoising=float(step), grad_norm=step / 10, timestep=[100, 700]))
        if step % 5 == 0:
            lines[-1]["grad_norm_terms"] = {"denoising": 1.0 * step, "stabilization": 2.0, "alignment": 2.5}
        if step % 2 == 0:
            lines[-1] |= {"stabilization": None, "alignment": None}
    (tmp_path / "snapshots" / "step_000005").mkdir(parents=True)
    (tmp_path / "snapshots" / "step_000015").mkdir()
    config = TrainConfig(class_word="toy", steps=40, optimizer=OptimizerConfig(max_grad_norm=1.5, learning_rate=1e-3))
    write_report(write_run(tmp_path, lines, config))
    values = json.loads((tmp_path / "report.json").read_text())
    assert (values["steps_done"], values["steps_planned"], values["window"]) == (20, 40, 2)
    low, high = values["bins"]
    assert low == {
        "bin": 0,
        "levels": [0.0, 0.5],
        "samples": 20,
        "gamma": pytest.approx(0.95),
        "near_one_since": 6,
    }
    assert high == {
        "bin": 1,
        "levels": [0.5, 1.0],
        "samples": 20,
        "gamma": pytest.approx(0.195),
        "near_one_since": None,
    }
    assert values["most_since"] is None
    assert values["data_weight"] == pytest.approx((0.05 + 0.805) / 2)
    assert values["terms"]["denoising"] == {"first_quarter": 3.0, "last_quarter": 18.0}
    assert values["terms"]["stabilization"] == {
        "first_quarter": pytest.approx(0.2),
        "last_quarter": pytest.approx(0.2),
    }
    # the later half of the measurements: steps 15 and 20
    assert values["balance"]["denoising"] == {"norm": 17.5, "share": pytest.approx(17.5 / 22)}
    assert values["balance"]["alignment"] == {"norm": 2.5, "share": pytest.approx(2.5 / 22)}
    assert values["clipped"] == 5 / 20  # above 1.5: steps 16 to 20
    assert values["snapshots"] == [5, 15] and values["trend"] == "unknown"


def test_only_a_method_that_weighs_the_loss_has_a_weight_left_to_it(tmp_path) -> None:
    log = log_arrays(write_run(tmp_path, [plain_line(step, [0.2, 0.4]) for step in range(1, 21)]) / "log.jsonl")
    watched, unweighed = AptConfig(watch_indicator=True), AptConfig(adaptive_loss_weight=False)
    weighs = summarize(log, TrainConfig(class_word="toy"))
    assert weighs.data_weight == pytest.approx(0.7)
    for config in (
        TrainConfig(class_word="toy", apt=unweighed),
        TrainConfig(class_word="toy", method="dreambooth", apt=watched),
        TrainConfig(class_word="toy", method="dco"),
    ):
        summary = summarize(log, config)
        assert summary.indicator_measured and summary.data_weight is None


def test_a_noise_level_that_the_log_rounds_below_an_edge_is_in_the_upper_bin(tmp_path) -> None:
    """A third is logged as 0.333333."""
    lines = [plain_line(step, [0.1, 0.2, 0.3], level=[0.333333, 0.333331]) for step in range(1, 6)]
    summary = summarize(log_arrays(write_run(tmp_path, lines) / "log.jsonl"), TrainConfig(class_word="toy"))
    assert [item.samples for item in summary.bins] == [5, 5, 0]


def test_most_bins_are_near_one_when_more_than_half_are(tmp_path) -> None:
    def since(*first: int) -> int | None:
        lines = [plain_line(step, [1.0 if step >= at else 0.0 for at in first]) for step in range(1, 21)]
        return summarize(log_arrays(write_run(tmp_path, lines) / "log.jsonl"), TrainConfig(class_word="toy")).most_since

    assert since(3, 9, 99) == 9 and since(3, 99, 99) is None
    assert since(3, 9, 99, 99) is None and since(3, 9, 5, 99) == 9


def test_bins_are_named_in_as_many_digits_as_tell_them_apart() -> None:
    assert bin_names(1) == ["0.0-1.0"]
    assert bin_names(10)[0] == "0.0-0.1" and bin_names(10)[9] == "0.9-1.0"
    assert bin_names(20)[19] == "0.95-1.00" and bin_names(101)[1] == "0.010-0.020"
    for bins in (7, 32, 100, 999, 1000):
        names = bin_names(bins)
        assert len(set(names)) == bins
        assert [name.split("-")[1] for name in names[:-1]] == [name.split("-")[0] for name in names[1:]]


def test_a_log_of_timesteps_alone_is_read_as_one_with_levels(tmp_path) -> None:
    """Older versions wrote no noise level; a family's levels need not be even."""
    old = plausible_log(200)
    new = [line | {"level": [t / 1000 for t in line["timestep"]]} for line in old]
    other = [line | {"level": [(t / 1000) ** 2 for t in line["timestep"]]} for line in old]
    config = TrainConfig(class_word="toy")
    by_old, by_new, by_other = (
        summarize(log_arrays(write_run(tmp_path / name, lines) / "log.jsonl"), config)
        for name, lines in (("old", old), ("new", new), ("other", other))
    )
    assert by_old == by_new != by_other
    low = sum(t < 316 for line in old for t in line["timestep"])  # 0.316 squared is 0.1
    assert by_other.bins[0].samples == pytest.approx(low, abs=2) and by_other.bins[0].samples > by_old.bins[0].samples


def test_the_trend_is_seen_through_the_noise_levels(tmp_path) -> None:
    def trend(**changes) -> str:
        write_run(tmp_path, plausible_log(1000, **changes))
        log = log_arrays(tmp_path / "log.jsonl")
        return summarize(log, TrainConfig(class_word="toy")).trend

    assert trend(loss_drop=0.8) == "falling"
    assert trend(loss_drop=-0.8) == "rising"
    assert [trend(loss_drop=0.0, seed=seed) for seed in range(8)].count("flat") >= 6


def test_evening_takes_out_what_the_noise_level_alone_explains(tmp_path) -> None:
    draws = np.random.default_rng(0)
    lines = []
    for step in range(1, 401):
        drawn = draws.integers(1000, size=2).tolist()
        level = float(np.mean([1 + t // 50 for t in drawn]))  # a level for each twentieth of the schedule
        lines.append(plain_line(step, [0.0], timestep=drawn, denoising=level + (0.5 if step > 200 else 0.0)))
    write_run(tmp_path, lines)
    even = evened_denoising(log_arrays(tmp_path / "log.jsonl"))
    raw = np.array([line["denoising"] for line in lines])
    assert raw.std() > 3
    assert even.std() == pytest.approx(0.25, abs=0.02) and even.mean() == pytest.approx(raw.mean())
    assert even[200:].mean() - even[:200].mean() == pytest.approx(0.5, abs=0.05)
    write_run(tmp_path, lines[:39])
    assert evened_denoising(log_arrays(tmp_path / "log.jsonl")).tolist() == raw[:39].tolist(), "too few to tell"


def test_block_means_and_moving_average() -> None:
    assert block_means(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert block_means(np.arange(3.0), 3).tolist() == [0, 1, 2]
    holes = block_means(np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 1.0], [7.0, np.nan]]), 2)
    assert np.array_equal(holes, [[2, np.nan], [6, 1]], equal_nan=True)
    assert moving_average(np.array([1.0, 2.0, 6.0, np.nan]), 3).tolist() == [1.5, 3.0, 4.0, 6.0]
    assert moving_average(np.array([1.0, 5.0]), 1).tolist() == [1.0, 5.0]
    assert np.isnan(moving_average(np.array([np.nan, np.nan, np.nan, 1.0]), 3)).tolist() == [
        True,
        True,
        False,
        False,
    ]


# --- words --------------------------------------------------------------------------------------------------------


def test_the_verdict_follows_the_indicator(tmp_path) -> None:
    calm = told(tmp_path, plausible_log(1000, ceiling=(0.6, 0.2)))
    assert (
        "The overfitting indicator is near 1 at no noise level: the highest is 0.5" in calm
        and "does not overfit" in calm
    )
    some = told(tmp_path, plausible_log(1000, rise=150, ceiling=(0.99, 0.5)))
    assert re.search(r"near 1 \(0.9 or more\) at 2 of 10 noise levels \(0.0-0.2\)", some) and "no alarm" in some
    most = told(tmp_path, plausible_log(1000, rise=100, ceiling=(0.99, 0.97)))
    since = re.search(r"at 10 of 10 noise levels \(0.0-1.0\).*for most levels at step (\d+)\.", most)
    assert since and "cannot tell these apart" in most
    # the sixth bin's curve: 0.98 (1 - exp(-s / (100 * (1 + 2 * 5/9)))) reaches 0.9 at step 528
    assert abs(int(since[1]) - 528) < 60
    assert "Have the drift measured" in most, "without it nothing more can be said"


def test_the_verdict_follows_the_drift(tmp_path) -> None:
    def told_of(ratios: tuple[float, float], **changes: Any) -> str:
        write_run(tmp_path, plausible_log(1000, **{"ratios": ratios, "rise": 100, "ceiling": (0.99, 0.97), **changes}))
        config = TrainConfig(class_word="toy", steps=1000, method=method)
        return paragraph(summarize(log_arrays(tmp_path / "log.jsonl"), config, snapshots=range(50, 1001, 50)))

    method: Any = "apt"
    stays = told_of((0.1, 0.13))
    assert "At step 1000 the drift ratio was 0.13, its lowest " in stays and "it has not risen much" in stays
    assert "Lower the learning rate" not in stays and "Compare" not in stays, "an indicator near 1 alone is no alarm"
    spills = told_of((0.1, 0.52))
    assert "the drift ratio was 0.52, its lowest " in spills and "a sign of overfitting" in spills
    # its lowest is .121, of step 50; .1 + .42 s / 1000 passes three times that, .363, after step 626
    assert "Compare the snapshot of step 600, from before the drift ratio rose" in spills
    assert "Lower the learning rate from 5e-05" in spills and "Add pictures" in spills and ";" not in spills
    assert "train longer" not in spills
    calm = told_of((0.1, 0.52), ceiling=(0.6, 0.2))
    assert "a sign of overfitting" in calm and "does not overfit" not in calm, "of two measures the drift decides"
    method = "dreambooth"
    unasked = [line | {"gamma": [0.0] * 10} for line in plausible_log(200, ratios=(0.1, 0.12), regularised=False)]
    words = told(tmp_path, unasked, TrainConfig(class_word="toy", steps=200, method="dreambooth"))
    assert "indicator was not measured" in words and "not known" not in words and "not risen much" in words


def test_drift_is_drawn_where_it_was_measured(tmp_path) -> None:
    text = write_report(write_run(tmp_path / "with", plausible_log(200, ratios=(0.1, 0.4)))).read_text()
    assert "| drift ratio at the last snapshot measured | 0.40 |" in text and "drift.png" in text
    few, many = (
        part_figure("drift", read_run(write_run(tmp_path / str(end), plausible_log(200, ratios=(0.1, end)))))
        for end in (0.2, 0.9)
    )
    assert as_picture(few, 650).tobytes() != as_picture(many, 650).tobytes()
    written = json.loads((tmp_path / "with" / "report.json").read_text())["drift"]
    assert [item["step"] for item in written] == [50, 100, 150, 200]
    assert written[-1]["ratio"] == pytest.approx(0.4)
    text = write_report(write_run(tmp_path / "without", plausible_log(200))).read_text()
    assert "| drift ratio at the last snapshot measured | - |" in text and "drift.png" not in text


def test_without_a_prior_pass_overfitting_is_not_known(tmp_path) -> None:
    lines = [line | {"gamma": [0.0] * 10} for line in plausible_log(200, regularised=False)]
    words = told(tmp_path, lines, TrainConfig(class_word="teddy bear", steps=400, method="dreambooth"))
    assert words.startswith('DreamBooth trained "teddy bear" for 200 steps of the 400 planned.')
    assert "not measured" in words and "not known" in words and "Have the drift measured" in words
    assert "does not overfit" not in words
    watched = TrainConfig(class_word="toy", steps=200, method="dreambooth", apt=AptConfig(watch_indicator=True))
    assert "the highest is 0.00" in told(tmp_path, lines, watched)
    assert "at no noise level" in told(
        tmp_path, plausible_log(200, ceiling=(0.5, 0.2)), TrainConfig(class_word="toy", method="dco")
    )


def test_an_unmeasured_indicator_figure_says_so(tmp_path) -> None:
    lines = plausible_log(50, regularised=False, bins=10)
    apt = TrainConfig(class_word="toy", steps=50)
    write_report(write_run(tmp_path / "apt", lines, apt))
    flat = [line | {"gamma": []} for line in lines]
    text = write_report(
        write_run(tmp_path / "none", flat, TrainConfig(class_word="toy", method="dreambooth"))
    ).read_text()
    assert "| noise levels near 1 | not measured |" in text and "samples" not in text
    assert (tmp_path / "apt" / "indicator.png").read_bytes() != (tmp_path / "none" / "indicator.png").read_bytes()


def test_the_verdict_follows_the_loss(tmp_path) -> None:
    plain = AptConfig(adaptive_augmentation=False)
    assert "still falling" in told(tmp_path, plausible_log(800, loss_drop=0.8))
    rising = plausible_log(800, loss_drop=-0.8, ceiling=(0.6, 0.2))
    assert "no bad sign by itself" in told(tmp_path, rising)
    words = told(tmp_path, rising, TrainConfig(class_word="toy", steps=800, apt=plain))
    assert "no bad sign" not in words and "Lower the learning rate" in words
    falling = told(tmp_path, plausible_log(800, loss_drop=0.8), TrainConfig(class_word="toy", steps=800, apt=plain))
    assert "still falling" in falling and "Lower the learning rate" not in falling


def test_a_flat_loss_asks_for_a_higher_rate_only_where_nothing_is_near_one(tmp_path) -> None:
    flat = [plain_line(step, [0.1, 0.2], denoising=0.1 + 0.01 * (step % 2)) for step in range(1, 401)]
    config = TrainConfig(class_word="toy", steps=400)
    calm = told(tmp_path, flat, config)
    assert "raise the learning rate from 5e-05" in calm and "What to change" in calm
    assert "asks for a change" not in calm
    near = told(tmp_path, [line | {"gamma": [0.95, 0.2]} for line in flat], config)
    assert "raise the learning rate" not in near and "What to change" not in near
    assert "Nothing in these numbers asks for a change." in near


def test_the_verdict_weighs_the_terms(tmp_path) -> None:
    def with_norms(denoising: float, stabilization: float, alignment: float) -> str:
        norms = {"denoising": denoising, "stabilization": stabilization, "alignment": alignment}
        return told(tmp_path, [line | {"grad_norm_terms": norms} for line in plausible_log(100, ceiling=(0.5, 0.2))])

    fair = with_norms(1.0, 1.0, 0.5)
    assert "denoising 40%, stabilization 40%, alignment 20%. No term dominates." in fair
    assert "dist_weight" not in fair and "attn_weight" not in fair
    drowned = with_norms(1.0, 20.0, 0.1)
    assert "Stabilization dominates" in drowned and "Lower dist_weight from 0.01," in drowned
    assert "attn_weight" not in drowned  # next to that anything is small
    idle = with_norms(1.0, 0.01, 0.2)
    assert "Denoising dominates" in idle and "dist_weight" not in idle and "attn_weight" not in idle


def test_every_weighted_term_has_its_setting(tmp_path) -> None:
    """A term that drowns the rest is named with the setting to lower, also one that is not APT's."""
    settings = {
        "stabilization": "dist_weight from 0.01",
        "alignment": "attn_weight from 0.01",
        "prior_preservation": "prior_preservation_weight from 1",
    }
    terms = [*(term.name for term in terms_of(TrainConfig(class_word="toy"))), Preservation().name]
    assert {"denoising", *settings} == set(terms)
    for drowning in terms:
        norms = {name: 40.0 if name == drowning else 1.0 for name in terms}
        columns = {"grad_norm_terms": norms, "prior_preservation": 0.1}
        said = told(tmp_path, [line | columns for line in plausible_log(100, ceiling=(0.5, 0.2))])
        for name, setting in settings.items():
            advice = f"Lower {setting}, as the {name.replace('_', ' ')} term dominates."
            assert (advice in said) == (name == drowning)


def test_terms_of_a_lazy_prior_count_per_step(tmp_path) -> None:
    """Every fourth step and four times as strong is as strong as in every step."""
    norms = {"denoising": 1.0, "stabilization": 4.0, "alignment": 2.0}
    config = TrainConfig(class_word="toy", apt=AptConfig(lazy_prior=4))
    between = plain_line(2, [0.1], stabilization=None, alignment=None)
    write_run(
        tmp_path, [plain_line(1, [0.1], grad_norm_terms=norms), between, plain_line(5, [0.1], grad_norm_terms=norms)]
    )
    balance = summarize(log_arrays(tmp_path / "log.jsonl"), config).balance
    assert {name: item.norm for name, item in balance.items()} == {
        "denoising": 1.0,
        "stabilization": 1.0,
        "alignment": 0.5,
    }
    assert balance["denoising"].share == 0.4


def test_a_short_run_is_told_to_wait(tmp_path) -> None:
    words = told(tmp_path, plausible_log(5, ceiling=(1.0, 1.0), rise=0.1))
    assert "for 5 steps" in words and "says nothing yet" in words and "Train longer" in words
    assert "does not overfit" not in words
    assert "for 1 step." in told(tmp_path, plausible_log(1))


def test_bins_never_trained_are_owned_up_to(tmp_path) -> None:
    lines = [line | {"timestep": [50]} for line in plausible_log(60)]
    assert "trained at all: 1 of 10." in told(tmp_path, lines)


def test_a_further_number_is_drawn_under_its_name_and_none_takes_a_terms_place(tmp_path) -> None:
    numbers = {"weight_norm": 2.0, "denoising": 7.0, "loss": 7.0}
    lines = [plain_line(step, [0.1], numbers=numbers if step > 1 else {}) for step in (1, 2, 3)]
    run = read_run(write_run(tmp_path, lines))
    assert list(run.log.numbers) == ["weight_norm"] and run.log.terms["denoising"].max() < 7
    titles = [axes.get_title(loc="left") for axes in part_figure("losses", run).axes]
    assert titles.count("Weight norm") == 1 and "Denoising" in titles[1]


def test_a_term_is_shown_as_the_run_said_and_else_by_its_name(tmp_path) -> None:
    """A term that this version has never heard of, and one of a run that says nothing of its terms."""
    lines = [plain_line(step, [0.1], l2_pull=0.5, grad_norm_terms={"l2_pull": 1.0}) for step in (1, 2, 3)]
    folder = write_run(tmp_path, lines)
    plain = read_run(folder)
    assert plain.log.legends["l2_pull"].title == "L2 pull" and plain.summary.terms["l2_pull"].last_quarter == 0.5
    content = json.loads((folder / "config.json").read_text())
    content["terms"]["l2_pull"] = {"title": "Pull to the base", "colour": "#123456"}
    (folder / "config.json").write_text(json.dumps(content))
    figure = part_figure("losses", read_run(folder))
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Pull to the base")
    assert panel.lines[0].get_color() == "#123456"
    assert "| l2 pull |" in write_report(folder).read_text()


@pytest.mark.parametrize(
    "terms",
    [
        [], "x", {"denoising": None}, {"denoising": {"title": 3, "colour": "#123456"}},
        {"denoising": {"title": "$\\frac{", "colour": "#123456"}}, {"denoising": {"title": "D", "colour": "red; x"}},
    ],
)  # fmt: skip
def test_looks_that_no_run_writes_count_for_nothing(tmp_path, terms: Any) -> None:
    folder = write_run(tmp_path, plausible_log(30))
    content = json.loads((folder / "config.json").read_text()) | {"terms": terms}
    (folder / "config.json").write_text(json.dumps(content))
    assert (
        read_run(folder).log.legends["denoising"] == Legend("Denoising", "#2a6fbb") and write_report(folder).is_file()
    )


# --- all in one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "measured"),
    [(plausible_log(80), True), (plausible_log(1, balance_every=0), True), ([plain_line(1, [])], False)],
)
def test_everything_stands_in_one_picture(tmp_path, lines, measured) -> None:
    run = read_run(write_run(tmp_path, lines))
    assert run.summary.indicator_measured == measured
    figure = overview_figure(run)
    for width in (500, 1024):
        picture = as_picture(figure, width)
        assert picture.width == width and picture.mode == "RGB" and colours_in(picture) > 100
    titles = {axes.get_title(loc="left") for part in figure.subfigs for axes in part.axes}
    assert ("Overfitting indicator by noise level (dashed: near 1)" in titles) == measured
    assert {"Total (weighted)", "Denoising", "Attention alignment"} <= titles


def test_every_curve_has_its_steps_across_and_its_values_up(tmp_path) -> None:
    run = read_run(write_run(tmp_path, plausible_log(100, balance_every=10, ratios=(0.1, 0.4))))
    log = run.log
    shown: dict[str, list[tuple[Any, Any]]] = {
        "indicator": [(log.step, values) for values in log.gamma.T],
        "drift": [(log.drift_step, log.drift[name]) for name in ("ratio", "subject", "unrelated")],
        "losses": [(log.step, values) for values in (log.terms | log.numbers).values()],
        "balance": [(log.balance_step, values) for values in log.balance.values()],
    }
    for part, curves in shown.items():
        drawn = [np.asarray(line.get_xydata()) for axes in part_figure(part, run).axes for line in axes.lines]
        for steps, values in curves:
            wanted = np.stack([steps, values], axis=1)
            assert any(points.shape == wanted.shape and np.allclose(points, wanted) for points in drawn), part


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_run_is_read_up_to_a_step(tmp_path) -> None:
    """A folder may hold more steps than the run that is asked about."""
    folder = write_run(tmp_path, plausible_log(200))
    for step in (50, 100, 150):
        (folder / "snapshots" / f"step_{step:06d}").mkdir(parents=True)
    run = read_run(folder, until=120)
    assert run.log.step[-1] == 120 and len(run.log.levels) == 120 and run.log.gamma.shape == (120, 10)
    assert run.log.balance_step.tolist() == [50, 100] and run.snapshots == [50, 100]
    assert run.summary.steps_done == 120 and read_run(folder).summary.steps_done == 200
    with pytest.raises(InputError, match="no step up to 0"):
        read_run(folder, until=0)


@pytest.mark.usefixtures("blank")
def test_a_cut_last_line_is_left_out_and_said(tmp_path) -> None:
    write_run(tmp_path, plausible_log(100))
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "for 99 steps of the 100 planned. The last line of the log was cut off" in text
    assert "left out." in text and "unreadable" not in text, "it is said once"


def test_a_step_logged_twice_counts_as_last_logged(tmp_path) -> None:
    lines = [plain_line(1, [0.1]), plain_line(2, [0.2]), plain_line(2, [0.3], loss=7.0)]
    write_run(tmp_path, lines)
    log = log_arrays(tmp_path / "log.jsonl")
    assert log.step.tolist() == [1, 2] and log.terms["loss"].tolist() == [1.0, 7.0]


def set_config(folder: Path, stored: object) -> None:
    (folder / "config.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "log.jsonl").unlink(), r"log.jsonl cannot be read"),
        (lambda f: (f / "config.json").unlink(), r"config.json cannot be read"),
        (lambda f: (f / "log.jsonl").write_bytes(b""), r"log.jsonl holds no finished step"),
        (lambda f: (f / "log.jsonl").write_bytes(b"\x00\xff\x13"), r"log.jsonl holds no finished step"),
        (lambda f: set_config(f, "{"), r"config.json is not readable JSON"),
        (lambda f: set_config(f, []), r"config.json holds no settings"),
        (
            lambda f: set_config(f, {"format": 1, "config": {"class_word": "toy", "speed": 3}}),
            r"no setting named speed",
        ),
        (
            lambda f: set_config(f, {"format": 1, "config": {"class_word": "toy", "apt": 3}}),
            r"AptConfig is 3",
        ),
        (lambda f: (f / "attention.safetensors").write_bytes(b"zz"), r"attention.safetensors is damaged"),
        (lambda f: write_attention_without_labels(f), r"attention.safetensors is damaged"),
    ],
)
def test_damaged_runs_are_refused_by_name(tmp_path, damage, message) -> None:
    write_run(tmp_path, plausible_log(10))
    damage(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing half-written


def write_attention_without_labels(folder: Path) -> None:
    save_file({"prior": torch.zeros(2, 4, 4), "tuned": torch.zeros(2, 4, 4)}, folder / "attention.safetensors")


MAPS = torch.rand(2, 4, 4)
ODD_MAPS: dict[str, dict[str, torch.Tensor]] = {
    "without a pixel": {"prior": torch.zeros(2, 0, 4)},
    "flat": {"prior": torch.zeros(2, 4)},
    "whole numbers": {"prior": torch.zeros(2, 4, 4, dtype=torch.int64)},
    "yes and no": {"prior": torch.zeros(2, 4, 4, dtype=torch.bool)},
    "far larger than any": {"prior": torch.zeros(2, 600, 4)},
    "another size": {"prior": torch.zeros(2, 4, 5)},
    "a grey picture": {"image": torch.zeros(1, 8, 8, dtype=torch.uint8)},
    "a flat picture": {"image": torch.zeros(8, 8, dtype=torch.uint8)},
    "a picture in floats": {"image": torch.zeros(3, 8, 8)},
    "a picture without a pixel": {"image": torch.zeros(3, 0, 8, dtype=torch.uint8)},
    "a picture far larger than any": {"image": torch.zeros(3, 1, 9000, dtype=torch.uint8)},
}


@pytest.mark.parametrize("name", ODD_MAPS)
def test_attention_that_no_run_has_written_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tensors = {"prior": MAPS, "tuned": MAPS.clone(), **ODD_MAPS[name]}
    if name != "another size" and "prior" in ODD_MAPS[name]:
        tensors["tuned"] = tensors["prior"].clone()
    save_file(tensors, tmp_path / "attention.safetensors", {"labels": json.dumps(["a", "b"])})
    with pytest.raises(InputError, match=r"attention\.safetensors is damaged or holds no attention maps: delete it"):
        read_maps(tmp_path / "attention.safetensors")


@pytest.mark.parametrize("count", [2, 300, 5000])
def test_of_a_long_captions_attention_the_first_columns_are_read(tmp_path: Path, count: int) -> None:
    """What is no number or no letter is none in the figure either."""
    maps = torch.full((count, 2, 2), float("nan"))
    maps[0, 0, 0] = float("inf")
    labels = {"labels": json.dumps(["\ud800\n"] * count)}
    save_file({"prior": maps, "tuned": maps.clone()}, tmp_path / "attention.safetensors", labels)
    found = read_maps(tmp_path / "attention.safetensors")
    assert found is not None and len(found.labels) == len(found.prior) == len(found.tuned) == min(count, 300)
    assert torch.isfinite(found.prior).all() and found.labels[0] == "??"


def test_a_folder_that_is_none_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_what_a_node_shows_can_be_read_at_seven_tenths(tmp_path: Path) -> None:
    """On a node 440 pixels wide: no letter smaller than 8 pixels of the screen, with and without drift."""
    for steps in (2, 12, 400):
        figure = glance_figure(read_run(write_run(tmp_path / str(steps), plausible_log(steps))))
        figure.canvas.draw()
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        assert texts and min(float(text.get_fontsize()) for text in texts) / 72 * 440 / figure.get_figwidth() * 0.7 >= 8
        assert figure.get_figheight() <= 1.1 * figure.get_figwidth()


# --- attention tiles ----------------------------------------------------------------------------------------------


def test_tiles_show_a_dimmed_token_dim_and_blue() -> None:
    """One column full of prior attention and empty of tuned, one the other way: solid tiles of known colours."""
    prior = torch.stack([torch.full((8, 8), 0.8), torch.zeros(8, 8)])
    tuned = torch.stack([torch.zeros(8, 8), torch.full((8, 8), 0.4)])
    picture = attention_tiles((prior, tuned), ["toy", "grass"])
    bright, dark = (tuple(int(c) for c in heat(np.array(value))) for value in (1.0, 0.0))
    blue, red = (tuple(int(c) for c in diverging(np.array(value))) for value in (-1.0, 1.0))
    counts = {colour: n for n, colour in picture.getcolors(1 << 20) or []}
    assert counts[bright] == counts[dark] == 2 * 112 * 112
    assert counts[blue] == counts[red] == 112 * 112


def test_every_label_is_written_with_its_mean_attention(monkeypatch) -> None:
    written: list[str] = []
    draw = ImageDraw.ImageDraw.multiline_text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "multiline_text",
        lambda self, xy, text, *a, **k: (written.append(text), draw(self, xy, text, *a, **k))[1],
    )
    labels = "<start> a photo of toy_subject on grass in the park <end> <rest>".split()
    prior, tuned = plausible_maps(len(labels))
    picture = attention_tiles((prior, tuned), labels, Image.new("RGB", (30, 30), "red"))
    for label, before, after in zip(labels, prior, tuned, strict=True):
        (numbers,) = [text.split("\n")[1] for text in written if text.startswith(f"{label}\n")]
        shown = [float(number.strip(" %")) for number in numbers.split(">")]
        assert shown == [pytest.approx(float(maps.mean()) * 100, rel=0.06) for maps in (before, after)]
    assert {"prior", "tuned", "difference", "picture"} <= set(written)
    assert (255, 0, 0) in {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert picture.height > 2 * 3 * 112  # more than nine columns go on below


def test_maps_over_the_picture_let_it_through_where_nothing_looks() -> None:
    prior, tuned = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    prior[:, :, 0] = tuned[:, :, 0] = 1  # both look at the left half
    drawn = {
        over: np.asarray(attention_tiles((prior, tuned), ["toy"], Image.new("RGB", (30, 30), "lime"), over=over))
        for over in (False, True)
    }
    green = {over: (picture == (0, 255, 0)).all(axis=2).sum() for over, picture in drawn.items()}
    assert green[True] > 1.5 * green[False] > 0, "the picture itself, and under two maps and their difference"
    assert drawn[True].shape == drawn[False].shape
    alone, plain = (np.asarray(attention_tiles((prior, tuned), ["toy"], over=over)) for over in (True, False))
    assert np.array_equal(alone, plain), "without a picture the maps alone"


def test_tiles_keep_the_maps_aspect_and_survive_empty_maps() -> None:
    wide = attention_tiles(plausible_maps(2, (8, 16)), ["a", "b"])
    square = attention_tiles(plausible_maps(2, (16, 16)), ["a", "b"])
    assert square.height - wide.height == 3 * 56
    assert colours_in(attention_tiles((torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)), ["a"])) > 2


def test_few_tokens_beside_each_other_suit_a_small_place() -> None:
    """Rows are filled evenly, and no narrower than the lines above and beneath need."""
    maps, labels = plausible_maps(7), list("abcdefg")
    long, short = (attention_tiles(maps, labels, per_row=n) for n in (7, 4))
    assert short.width < 5 * 150 < long.width
    assert short.height > 1.7 * long.height
    one = attention_tiles(plausible_maps(1), ["a"])
    assert one.width < short.width


def test_a_heading_stands_above_the_tiles_and_is_wrapped() -> None:
    maps = plausible_maps(2)
    plain, one, long = (
        attention_tiles(maps, ["a", "b"], heading=heading) for heading in ([], ["prior reads"], ["prior reads " * 20])
    )
    assert plain.height < one.height < long.height
    assert plain.width == one.width == long.width
    heights = one.height - plain.height
    assert one.crop((0, heights, *one.size)).tobytes() == plain.tobytes()


def test_maps_of_layers_of_different_sizes_meet_at_the_finest() -> None:
    """Positions are read row by row, at the latent's aspect; the mean over layers keeps every position's sum."""
    fine = torch.zeros(8 * 16, 2)
    fine[3 * 16 + 5] = torch.tensor([1.0, 0.0])
    merged = merge_layers([fine], aspect=0.5)
    assert merged.shape == (2, 8, 16)
    assert merged[0, 3, 5] == 1 and merged.sum() == 1
    rows = [torch.softmax(torch.randn(n, 2), dim=-1) for n in (8 * 16, 4 * 8)]
    assert torch.allclose(merge_layers(rows, aspect=0.5).sum(dim=0), torch.ones(8, 16))


def test_a_grid_places_pictures_and_leaves_empty_places_empty() -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    sheet = labelled_grid([[red, None], [blue, red]], ["one", "two"], ["a", "b"], gap=3)
    counts = {colour: n for n, colour in sheet.getcolors(1 << 20) or []}
    assert counts[(255, 0, 0)] == 400 and counts[(0, 0, 255)] == 200


def test_long_labels_fit_their_column() -> None:
    face = font(13)
    for label in ("a photo of the very same toy", "incomprehensibilities_subject", "short", "two\nlines"):
        lines = fit_label(label, 80, face).split("\n")
        assert all(face.getlength(line) <= 80 for line in lines)
    assert fit_label("two\nlines", 200, face) == "two\nlines"
    assert ".." in fit_label("incomprehensibilities_subject", 80, face)


def test_no_row_label_reaches_into_the_next_row() -> None:
    """A prompt may fill a page; its beginning is shown."""
    tile, letters = Image.new("RGB", (60, 60), "red"), 12

    def rows(label: str) -> Image.Image:
        return labelled_grid([[tile], [tile]], [fit_label(label, 90, font(letters)), ""], [""], text_size=letters)

    sheet = rows("a toy in a field of tall grass " * 40)
    beside = range(sheet.height - 60, sheet.height), range(sheet.width - 64)
    assert {sheet.getpixel((x, y)) for y in beside[0] for x in beside[1]} == {sheet.getpixel((0, 0))}
    assert rows("three\nshort\nlines") != rows("three\nshort")


def test_a_word_without_an_end_is_fitted_as_fast_as_another() -> None:
    asked: list[str] = []

    class Face:
        def getlength(self, text: str) -> float:
            asked.append(text)
            return float(len(text))

    assert fit_label("x" * 5000, 80, cast("Any", Face())) == f"{'x' * 39}..{'x' * 39}"
    assert len(asked) < 30


# --- live pictures ------------------------------------------------------------------------------------------------


def test_the_live_map_has_the_noisiest_bin_on_top_and_time_to_the_right() -> None:
    """Two bins: the clean one goes from 0 to 1 half way, the noisy one stays at 0.5."""
    gamma = np.full((100, 2), 0.5)
    gamma[:50, 0], gamma[50:, 0] = 0.0, 1.0
    picture = np.array(heat_image(gamma, 400, 200))
    zero, half, one = (tuple(int(c) for c in heat(np.array(value))) for value in (0.0, 0.5, 1.0))
    assert {tuple(pixel) for pixel in picture[40:80, 100:330].reshape(-1, 3).tolist()} == {half}
    assert {tuple(pixel) for pixel in picture[120:160, 70:180].reshape(-1, 3).tolist()} == {zero}
    assert {tuple(pixel) for pixel in picture[120:160, 240:330].reshape(-1, 3).tolist()} == {one}


def test_live_pictures_of_nothing_and_of_little() -> None:
    for gamma in (np.zeros((0, 10)), np.zeros((5, 0)), np.zeros((1, 10)), np.zeros((3, 40))):
        assert heat_image(gamma, 200, 100).size == (200, 100)
    for losses in ([], [1.0], [float("nan"), 2.0], [0.0, 0.0], [-1.0, 2.0, float("inf")], [3.0] * 5000):
        assert colours_in(loss_image(losses, 200, 100)) > 1


def test_the_live_loss_shows_its_fall() -> None:
    picture = np.array(loss_image(np.linspace(1, 0, 500), 400, 200))
    line = np.argwhere((picture == (42, 111, 187)).all(-1))
    left, right = line[line[:, 1] < 120], line[line[:, 1] > 300]
    assert len(left) and len(right) and left[:, 0].mean() < right[:, 0].mean() - 60

"""Presets: what each sets, what stands above it, and that a run is known by its values alone.

Not here: the combo on the node in the real editor (`tests/host/test_presets.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from apt_train import cli
from apt_train.config import TrainConfig
from apt_train.console.options import config_from
from apt_train.errors import InputError
from apt_train.presets import PRESETS, PUBLISHED, in_force
from apt_train.report import write_report
from apt_train.settings_field import flat_values, nested
from apt_train.training.plan import plan_run

from .node_texts import node_modules, nodes
from .synthetic_run import plausible_log, write_run
from .tiny import tiny_components
from .training import pictures, quick_config

DEFAULTS = flat_values(TrainConfig(class_word="toy"))
SETTING = {name: preset for name, preset in PRESETS.items() if preset.values}
each = pytest.mark.parametrize("name", PRESETS)
each_that_sets = pytest.mark.parametrize("name", SETTING)


def parsed(*more: str) -> argparse.Namespace:
    needed = ["--checkpoint", "m", "--images", "p", "--output", "o", "--class-word", "toy"]
    return cli.build_parser().parse_args(["run", *needed, *more])


def on_the_node(
    preset: str, main: dict[str, Any] | None = None, options: dict[str, Any] | None = None, method: str = "APT"
) -> TrainConfig:
    """The settings of APT Train with widgets at their defaults, but for these."""
    with node_modules("settings", "wires", "train") as (settings, wires, train):
        own = {name: settings._as_shown(settings.Setting(name)) for name in (*train.MAIN, "seed")}
        shown = {**own, "class_word": "toy", "method": method, "preset": preset, **(main or {})}
        handed = wires.AptOptions(settings.settings_shown(options or {}))
        config = settings.train_config(shown, handed)
        return TrainConfig.from_dict(config.to_dict())  # of the module that outlives the stand-ins


# ---- the data ----------------------------------------------------------------------------------------------------


@each
def test_a_preset_names_settings_and_what_they_are_for(name: str) -> None:
    preset = PRESETS[name]
    assert preset.values.keys() <= DEFAULTS.keys() - {"class_word", "identifier", "seed"}
    config = TrainConfig.from_dict(nested({**preset.values, "class_word": "toy"}, TrainConfig))
    assert flat_values(config) == DEFAULTS | dict(preset.values)
    assert preset.why.endswith(".") and ("docs/" in preset.why or "Unmeasured" in preset.why or not preset.values)


def test_the_first_sets_nothing_and_is_the_default() -> None:
    assert next(iter(PRESETS)) == PUBLISHED and not PRESETS[PUBLISHED].values
    (combo,) = [slot for slot in nodes()["APTTrain"].inputs if slot.id == "preset"]
    assert combo.more["options"] == list(PRESETS) and combo.more["default"] == PUBLISHED
    assert config_from(parsed()) == TrainConfig(class_word="toy")


def test_low_memory_takes_half_of_the_weights_and_keeps_the_lora_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes on the published models stands in docs/memory.md."""
    monkeypatch.setattr("apt_train.training.estimate.SMALL", 0)
    by_preset = quick_config(**PRESETS["low memory"].values)
    plain, low = (
        plan_run(tiny_components(), pictures(), config, device="cpu").memory for config in (quick_config(), by_preset)
    )
    assert plain is not None and low is not None
    assert low.weights < 0.6 * plain.weights and low.step < 0.6 * plain.step and low.adapter == plain.adapter


# ---- what is set by hand stands above it -------------------------------------------------------------------------


@each
@pytest.mark.parametrize("spelled", [str, lambda name: name.replace(" ", "-")], ids=["as shown", "with hyphens"])
def test_a_preset_by_an_option(name: str, spelled: Any) -> None:
    config = config_from(parsed("--preset", spelled(name)))
    assert flat_values(config) == DEFAULTS | dict(PRESETS[name].values)


def test_an_option_that_is_given_stands_above_the_preset_also_at_its_default() -> None:
    config = config_from(parsed("--preset", "quick-look", "--steps", "2000", "--snapshot-every", "7"))
    assert (config.steps, config.output.snapshot_every, config.optimizer.learning_rate) == (2000, 7, 2e-4)


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="^preset is 'fast': choose one of published, quick look, "):
        config_from(parsed("--preset", "fast"))


@each
def test_a_preset_on_the_node_sets_what_the_command_line_would(name: str) -> None:
    watched = {"preview_every": 250}  # the node's own default, which is no hand either
    assert flat_values(on_the_node(name)) == DEFAULTS | watched | dict(PRESETS[name].values)


def test_a_widget_at_its_default_is_no_hand_and_any_other_value_is() -> None:
    chosen = on_the_node("quick look", {"steps": 70}, {"preview_every": 250, "snapshot_every": 33})
    values = flat_values(chosen)
    assert (values["steps"], values["preview_every"], values["snapshot_every"]) == (70, 100, 33)
    assert on_the_node("style", method="DCO").method == "dco" and on_the_node("style").method == "dreambooth"


# ---- what a run is known by, and what it says --------------------------------------------------------------------


@each_that_sets
def test_a_run_is_the_same_by_a_preset_and_by_hand(name: str) -> None:
    by_hand = TrainConfig.from_dict(nested({**PRESETS[name].values, "class_word": "toy"}, TrainConfig))
    assert config_from(parsed("--preset", name)).identity() == by_hand.identity()
    moved = by_hand.identity() != TrainConfig(class_word="toy").identity()
    assert moved, "or the preset is about watching alone"


def test_what_a_preset_has_set_is_said_without_what_was_set_by_hand() -> None:
    config = config_from(parsed("--preset", "quick look", "--steps", "50"))
    assert in_force("quick look", config) == (
        "learning_rate 0.0002, embedding_learning_rate 2e-05, snapshot_every 100, preview_every 100, preview_steps 15"
    )
    likeness = in_force("strong likeness", config_from(parsed("--preset", "strong likeness")))
    assert likeness == "temperature 300, adaptive_augmentation off, stabilization off, alignment off"
    assert in_force(PUBLISHED, config) == in_force("", config) == in_force("from elsewhere", config) == ""


@pytest.mark.parametrize(
    ("kept", "row"),
    [
        ({"preset": "small pictures"}, "| preset | small pictures: augment_fill reflect |"),
        ({"preset": PUBLISHED}, "| preset | published |"),
        ({}, "| preset | - |"),
        ({"preset": "| a stranger's"}, "| preset | - |"),
        ({"preset": 3}, "| preset | - |"),
    ],
)
def test_the_report_says_what_is_in_force(tmp_path: Path, kept: dict[str, Any], row: str) -> None:
    write_run(tmp_path, plausible_log(60))
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"].setdefault("apt", {})["augment_fill"] = "reflect"
    (tmp_path / "config.json").write_text(json.dumps(config | kept))
    assert row in write_report(tmp_path).read_text(encoding="utf-8")


@each
def test_a_preset_keeps_the_learned_word(name: str) -> None:
    """The editor takes it for granted where a text names the subject without its word (`web/prompts.js`)."""
    assert "identifier_mode" not in PRESETS[name].values

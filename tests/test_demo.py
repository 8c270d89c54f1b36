"""The demo on the embedded model, with as few steps and samples as show that every part of it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apt_train.config import AptConfig
from apt_train.demo import demo, sheet
from apt_train.demo.recipe import DEMO, demo_config, recipe
from apt_train.demo.sheet import TILE, measure
from apt_train.errors import InputError


@pytest.fixture
def settings() -> dict[str, Any]:
    return recipe()


def heldout() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((DEMO / "heldout").glob("*.png"))]


def test_the_demo_trains_both_and_draws_the_sheet(tmp_path: Path, settings: dict[str, Any], monkeypatch: Any) -> None:
    brief = {**settings, "prompts": settings["prompts"][-2:], "sampling": {"steps": 2, "guidance": 4.0}}
    brief["prompts"][0]["expect"].pop("place")
    monkeypatch.setattr(sheet, "SAMPLES", 1)
    monkeypatch.setattr(demo, "recipe", lambda: brief)
    picture = Image.open(demo.run_demo(tmp_path / "demo", steps=2))
    assert picture.width > 2 * TILE and picture.height > 3 * TILE
    numbers = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert set(numbers) == {"samples_per_prompt", "prior", "dreambooth", "apt"}
    for method in ("dreambooth", "apt"):
        folder = tmp_path / "demo" / method
        assert (folder / "my_toy.safetensors").exists() and (folder / "indicator.png").exists()
        assert json.loads((folder / "config.json").read_text())["config"]["method"] == method
    with pytest.raises(InputError, match="already holds a run"):
        demo.run_demo(tmp_path / "demo", steps=2)


def test_both_runs_share_one_recipe(settings: dict[str, Any]) -> None:
    methods = ("dreambooth", "apt")
    first, second = (demo_config(settings, method, steps=None).to_dict() for method in methods)
    assert {key for key in first if first[key] != second[key]} == {"method"}


def test_the_demo_turns_one_switch_of_apts(settings: dict[str, Any]) -> None:
    """The alignment, which does not help here (docs/benchmark.md); the temperature and the fill are a small model's."""
    config = demo_config(settings, "apt", steps=None)
    assert config.apt == AptConfig(temperature=300.0, augment_fill="reflect", alignment=False, watch_indicator=True)


def test_the_measures_see_the_subject_and_the_prompts(settings: dict[str, Any]) -> None:
    """On drawn pictures: held-out ones of the subject score high, an empty grey one low."""
    entries = [entry for entry in settings["prompts"] if entry["expect"]["style"] == "photo"][:4]
    some = {**settings, "prompts": entries}
    subject, grey = heldout(), Image.new("RGB", (64, 64), "grey")
    good = measure([subject[:2]] * len(entries), [subject[:2]] * len(entries), some)
    bad = measure([[grey, grey]] * len(entries), [subject[:2]] * len(entries), some)
    assert good["subject_fidelity"] > 0.7 > 0.4 > bad["subject_fidelity"]
    assert 0 <= bad["prompt_kept"] <= good["prompt_kept"] <= 1
    assert good["scene_kept"] == pytest.approx(1.0) and bad["scene_kept"] < 0.9

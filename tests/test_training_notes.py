"""What a user hears of a run before its first step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import apt_train
from apt_train import load_checkpoint, load_images
from apt_train.data.dataset import ImageSet
from apt_train.training.notes import notes_of
from apt_train.training.plan import plan_run
from tests.tiny import tiny_components
from tests.toy_flow import toy_flow_components
from tests.training import pictures, quick_config, run


def notes(images: ImageSet | None = None, prior: ImageSet | None = None, **settings: Any) -> list[str]:
    config = quick_config(**settings)
    return notes_of(plan_run(tiny_components(), images or pictures(), config, prior_images=prior, device="cpu"))


def test_nothing_is_told_where_nothing_is_odd() -> None:
    captions = ["a {subject} on grass", "", "the toy"]
    assert notes(pictures(captions=captions), pictures(seed=5, captions=["a {class_word}"] * 3)) == []


def called(name: str, prediction: str = "epsilon") -> list[str]:
    parts = replace(tiny_components(prediction_type=prediction), source=name)
    return notes_of(plan_run(parts, pictures(), quick_config(), device="cpu"))


@pytest.mark.parametrize("name", ["noobXLvPred10.safetensors", "fluffy-v-pred-e20.safetensors", "v_prediction-model"])
def test_a_name_that_says_v_is_told_where_the_model_is_trained_as_predicting_epsilon(name: str) -> None:
    (told,) = called(name)
    assert told.startswith(f"{name} predicts v by its name") and "v_prediction" in told
    assert called(name, "v_prediction") == []


DISTILLED = (
    "sdxl-turbo", "dreamshaperXL_v21TurboDPMSDE.safetensors", "RealVisXL_V5.0_Lightning_fp16.safetensors",
    "x_DMD2.safetensors", "Hyper-SDXL-1step.safetensors", "realisticVisionV60B1_v51HyperVAE.safetensors",
    "DreamShaper_8LCM.safetensors", "lcm.safetensors",
)  # fmt: skip
OTHERS = (
    "hyperrealXL.safetensors", "ponyDiffusionV6XL.safetensors", "v1-5-pruned-emaonly.safetensors", "calcmodel",
    "vivid_predator.safetensors", "sd_xl_base_1.0.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", DISTILLED)
def test_a_model_that_is_distilled_by_its_name_is_told(name: str) -> None:
    (told,) = called(name)
    assert told.startswith(f"{name} is distilled to few steps by its name")


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_read_into_other_names(name: str) -> None:
    assert called(name) == []


@pytest.mark.parametrize("prediction", [None, "v_prediction"])
def test_a_model_that_is_read_wrongly_is_told_by_its_first_losses(prediction: Any) -> None:
    """The embedded model predicts epsilon."""
    assets = Path(apt_train.__file__).parent / "assets"
    parts = load_checkpoint(assets / "drawn_world", prediction_type=prediction)
    settings = {"steps": 21, "batch_size": 1, "learning_rate": 1e-4, "identifier_mode": "word", "watch_drift": False}
    told = run(parts, load_images(assets / "demo" / "heldout"), method="dreambooth", **settings).notices
    assert sum("denoising loss is" in text for text in told) == (prediction is not None)


def test_a_flow_models_losses_are_not_judged() -> None:
    """They are of another size."""
    told = run(toy_flow_components(), steps=20, method="dreambooth", watch_drift=False)
    assert sum(told.losses) > 10 and not any("denoising loss is" in text for text in told.notices)


@pytest.mark.parametrize("count", [1, 3])
def test_the_subjects_own_pictures_among_those_of_its_class_are_told(count: int) -> None:
    (told,) = notes(pictures(3), pictures(count))
    names = {1: "picture 1", 3: "picture 1, picture 2 and picture 3"}[count]
    assert told == f"Also among the prior images: {names}. Prior images should not show the subject."


@pytest.mark.parametrize(("warmup", "is_told"), [(3, False), (4, True), (500, True)])
@pytest.mark.parametrize("schedule", ["constant_with_warmup", "cosine"])
def test_a_warm_up_that_the_run_does_not_outlast_is_told(warmup: int, is_told: bool, schedule: str) -> None:
    told = notes(steps=4, warmup_steps=warmup, lr_schedule=schedule)
    assert [f"warmup_steps is {warmup}, but the run ends at step 4," in text for text in told] == [True] * is_told


BRACES: dict[str, tuple[dict[str, Any], str]] = {
    "template": ({"caption_template": "a {subject} {x}"}, "{x}"),
    "previews": ({"preview_prompts": ("a {subject} in {red|blue}",)}, "{red|blue}"),
    "unseen": ({"unseen_prompt": "a {subject} { }"}, "{ }"),
    "wide": ({"caption_template": "a {subject} ｛subject｝"}, "｛subject｝"),
    "long": ({"caption_template": "a {subject} {" + 500 * "x" + "}"}, "..."),
}


@pytest.mark.parametrize(("settings", "shown"), BRACES.values(), ids=BRACES)
def test_braces_that_nothing_is_filled_into_are_told(settings: dict[str, Any], shown: str) -> None:
    (told,) = notes(**settings)
    assert (
        told.startswith("Only {subject} is filled in, so this is read as it stands: ")
        and shown in told
        and len(told) < 150
    )


@pytest.mark.parametrize("setting", ["caption_template", "preview_prompts", "drift_prompts", "class_caption"])
def test_a_placeholder_that_works_elsewhere_is_told_too(setting: str) -> None:
    braces = {"class_caption": "{what}", "drift_prompts": "{class_word}"}.get(setting, "{subject} {class_word}")
    text: Any = (f"a {braces}",) if setting.endswith("prompts") else f"a {braces}"
    (told,) = notes(prior=pictures(seed=5), **{setting: text})
    assert told.endswith(f"as it stands: {braces.rpartition(' ')[2]}.")


def test_what_is_told_of_prior_images_says_so() -> None:
    wide = pictures(count=1, seed=7).images + pictures(count=1, seed=8, width=128).images
    prior = ImageSet(wide, "", ["b.txt belongs to no picture."])
    told = run(steps=1, batch_size=2, prior_images=prior).notices
    assert "Prior images: b.txt belongs to no picture." in told
    assert any(text.startswith("Prior images: The pictures fall in 2 sizes") for text in told), told


@pytest.mark.parametrize("text", ["a (toy:1.2) on grass", "a ({subject}: .5 ), red"])
@pytest.mark.parametrize("of", ["captions", "preview_prompts"])
def test_weights_of_words_are_told(text: str, of: str) -> None:
    given: dict[str, Any] = {"preview_prompts": (text, "a {subject} (red) at 12:30")} if of == "preview_prompts" else {}
    (told,) = notes(pictures(captions=[text, "", "a toy (red: no) (2:1)"] if not given else None), **given)
    shown = text[text.index("(") : text.index(")") + 1]
    assert told.startswith(f"Words have no weights in training, so this is read as it stands: {shown}")


def test_braces_in_captions_are_told_once() -> None:
    (told,) = notes(pictures(captions=["a {subject} {x}", "a toy {x} {y}", ""]))
    assert told.endswith("as it stands: {x} and {y}.")


@pytest.mark.usefixtures("no_report")
def test_a_run_tells_them() -> None:
    assert any("{x}" in text for text in run(steps=1, caption_template="a {subject} {x}").notices)


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "class word": ({"class_word": "玩具", "identifier": "my_toy"}, "The class word is not in English. "),
    "template": (
        {"caption_template": "一张{subject}的照片"},
        "know English only, so they understand nothing in this: 一",
    ),
    "previews": ({"preview_prompts": ("海滩上的{subject}",)}, "in this: 海滩上的{subject}."),
}


@pytest.mark.parametrize(("settings", "shown"), FOREIGN.values(), ids=FOREIGN)
def test_words_that_the_text_encoders_do_not_know_are_told(settings: dict[str, Any], shown: str) -> None:
    """A language in Latin letters cannot be told from English by its letters."""
    (told,) = notes(**settings)
    assert shown in told
    assert notes(caption_template="une photo d’été de {subject}", class_word="Löwe", identifier="leo") == []


def test_a_caption_that_the_text_encoders_do_not_know_is_told() -> None:
    (told,) = notes(pictures(captions=["{subject} 在桌子上", "", "a toy"]))
    assert told.endswith("in this: {subject} 在桌子上.")


@pytest.mark.parametrize(("short", "every"), [(True, 1), (False, 1), (False, 0)])
def test_a_disk_without_room_for_the_run_is_told_before_its_first_step(
    short: bool, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it counts on is at least what the run then leaves, and not much more: one state is still being written."""
    settings: dict[str, Any] = {"steps": 4, "snapshot_every": every, "watch_drift": False}
    run(**settings, output_dir=tmp_path / "run")
    left = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    free = left // 2 if short else left
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    told = run(**settings, output_dir=tmp_path / "other").notices
    assert any(text.startswith("The disk has 0.0 GB free, and this run may write ") for text in told) == short, told

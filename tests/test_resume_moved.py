"""Going on with a run whose inputs have moved, and being told which of them are not what they were."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt_train import cli
from apt_train.data.dataset import ImageSet, TrainImage, load_images
from apt_train.errors import InputError
from apt_train.families.components import Components
from apt_train.run.config_file import read_config
from tests.test_cli import arguments, refused
from tests.tiny import schedule_of, tiny_components
from tests.training import pictures, run

pytestmark = pytest.mark.usefixtures("no_report")


# -- which of them differs


def changed(images: ImageSet, **parts: Callable[[TrainImage], Any]) -> ImageSet:
    """The set with other parts in its second picture."""
    second = images.images[1]
    kept = {"pixels": second.pixels, "caption": second.caption, "mask": second.mask}
    second = TrainImage(second.name, **{**kept, **{name: make(second) for name, make in parts.items()}})
    return dataclasses.replace(images, images=[images.images[0], second, *images.images[2:]], digest="another")


def begun() -> ImageSet:
    masks = [image.pixels[0].float() / 255 for image in pictures().images]
    return pictures(captions=["a toy", "a toy on grass", "a toy"], masks=masks)


def other_weights() -> Components:
    return dataclasses.replace(tiny_components(), digest="another")


def other_prediction() -> Components:
    parts = tiny_components()
    return dataclasses.replace(parts, schedule=dataclasses.replace(schedule_of(parts), prediction="v_prediction"))


def halved_mask(image: Any) -> Any:
    return image.mask * 0.5


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"components": other_weights}, "another checkpoint or VAE"),
    "prediction": (
        {"components": other_prediction},
        r"another checkpoint or prediction type \(epsilon, now v_prediction\)",
    ),
    "pixels": ({"images": lambda: changed(begun(), pixels=lambda i: i.pixels // 2)}, r"pictures \(1 missing, 1 new\)"),
    "one less": (
        {"images": lambda: dataclasses.replace(begun(), images=begun().images[:2], digest="another")},
        r"pictures \(1 missing, 0 new\)",
    ),
    "renamed": (
        {"images": lambda: dataclasses.replace(begun(), images=begun().images[::-1], digest="another")},
        "the same pictures under other names, which puts them in another order",
    ),
    "captions": ({"images": lambda: changed(begun(), caption=lambda _: "a toy in snow")}, "other captions"),
    "masks": ({"images": lambda: changed(begun(), mask=halved_mask)}, "other masks"),
    "no mask": ({"images": lambda: changed(begun(), mask=lambda _: None)}, "other masks"),
    "prior images": ({"prior_images": lambda: pictures(seed=5)}, "other prior images"),
    "settings": ({"learning_rate": lambda: 0.5}, r"other settings \(learning_rate was 0.01, now 0.5\)"),
    "weights and captions": (
        {"components": other_weights, "images": lambda: changed(begun(), caption=lambda _: "a toy in snow")},
        "another checkpoint or VAE and other captions",
    ),
}


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on the masked pictures; only read."""
    folder = tmp_path_factory.mktemp("run")
    run(images=begun(), steps=1, watch_drift=False, output_dir=folder)
    return folder


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_resume_names_what_differs_and_nothing_else(case: str, one_step: Path) -> None:
    others, words = DIFFERENT[case]
    given = {"images": begun(), **{name: make() for name, make in others.items()}}
    with pytest.raises(InputError, match=f"holds a run of (other )?{words}: give"):
        run(**given, steps=2, watch_drift=False, output_dir=one_step, resume=True)


@pytest.mark.parametrize("parts", [None, 3, {"pictures": 1, "weights": {}}, {"pictures": ["a"], "masks": None}])
def test_a_folder_that_does_not_hold_its_parts_says_less(parts: Any, one_step: Path, tmp_path: Path) -> None:
    """One of an older version, or a damaged one; with the right inputs it is resumed, and holds them from then on."""
    folder = shutil.copytree(one_step, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    content["parts"] = parts
    if parts is None:
        del content["parts"], content["dtype"]
    (folder / "config.json").write_text(json.dumps(content))
    other = changed(begun(), caption=lambda _: "a toy in snow")
    with pytest.raises(InputError, match="holds a run of another checkpoint"):
        run(images=other, steps=2, watch_drift=False, output_dir=folder, resume=True)
    assert run(images=begun(), steps=2, watch_drift=False, output_dir=folder, resume=True).steps_done == 2
    assert len(read_config(folder).content["parts"]["masks"]) == 3


def test_what_an_older_version_did_not_know_has_its_default(one_step: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(one_step, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    del content["config"]["dco_beta"], content["config"]["apt"]["dist_mode"], content["num_timesteps"]
    (folder / "config.json").write_text(json.dumps(content))
    assert run(images=begun(), steps=2, watch_drift=False, output_dir=folder, resume=True).steps_done == 2


# -- moved


@pytest.fixture
def trained(model: Path, photos: Path, tmp_path: Path) -> Path:
    """A run on a model and pictures in `tmp_path`, of which only the run stays where it was."""
    shutil.copytree(model, tmp_path / "model")
    output = tmp_path / "my run"
    command = arguments(tmp_path / "model", photos, output, "--steps", "1", "--no-watch-drift")
    assert cli.main([*command, "--prior-images", str(photos)]) == 0
    (tmp_path / "model").rename(tmp_path / "-model")
    photos.rename(tmp_path / "my photos")
    return output


def test_a_moved_run_goes_on_with_its_new_places_and_keeps_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each refusal names the next option; relative paths and a quoted `~` are read as they were typed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    command = ["resume", "my run", "--device", "cpu"]
    for option, place in (
        ("--checkpoint", "-model"),
        ("--images", "~/my photos"),
        ("--prior-images", "my photos"),
    ):
        told = refused([*command, "--steps", "2"], capsys)
        assert f"apt-train resume 'my run' {option} PATH`" in told and "where nothing is now" in told
        command.append(f"{option}={place}")
    assert cli.main([*command, "--steps", "2"]) == 0
    inputs = read_config(trained).content["inputs"]
    assert inputs["images"] == inputs["prior_images"] == str(tmp_path / "my photos")
    assert inputs["checkpoint"] == str(tmp_path / "-model")
    assert cli.main(["resume", "my run", "--device", "cpu", "--steps", "3"]) == 0


def test_other_pictures_at_the_new_place_are_refused_and_not_recorded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "config.json").read_bytes()
    places = [f"--checkpoint={tmp_path / '-model'}", "--prior-images", str(tmp_path / "my photos")]
    other = shutil.copytree(tmp_path / "my photos", tmp_path / "others")
    (other / "1.txt").write_text("a photo of {subject} in snow")
    told = refused(["resume", str(trained), *places, "--images", str(other), "--device", "cpu"], capsys)
    assert "a run of other captions: " in told
    assert (trained / "config.json").read_bytes() == before
    assert load_images(other).digest != load_images(tmp_path / "my photos").digest


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no inputs": (lambda content: content.pop("inputs"), "was not written by"),
    "inputs are a list": (lambda content: content.update(inputs=[]), "was not written by"),
    "a number for a path": (lambda content: content["inputs"].update(images=3), "images is 3"),
    "no path": (lambda content: content["inputs"].update(checkpoint=None), "checkpoint is empty"),
    "an empty path": (lambda content: content["inputs"].update(images=""), "pictures is empty"),
    "a zero byte": (lambda content: content["inputs"].update(images="a\0b"), "no file can be called"),
    "a text for a switch": (lambda content: content["inputs"].update(alpha_masks="no"), "alpha_masks is 'no'"),
    "a list for a colour": (lambda content: content["inputs"].update(background=[1]), "background is"),
    "no settings": (lambda content: content.pop("config"), "config.json"),
    "true for a number": (lambda content: content["config"]["adapter"].update(rank=True), "rank is True"),
    "text for a number": (lambda content: content["config"].update(steps="9"), "steps is '9'"),
    "too large": (lambda content: content["config"].update(seed=2**64), "seed is 18446744073709551616"),
    "infinity": (lambda content: content["config"]["optimizer"].update(learning_rate=float("inf")), "learning_rate"),
    "a newer setting": (lambda content: content["config"]["apt"].update(newer=1), "no setting named newer"),
    "an unprintable setting": (lambda content: content["config"].update({"\x1f": 1}), "no setting named ?:"),
    "a list of settings": (lambda content: content.update(config=[]), "config.json"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_changed_config_gets_one_sentence(
    case: str, one_step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = DAMAGED[case]
    folder = shutil.copytree(one_step, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    content["inputs"] = {"checkpoint": str(tmp_path), "images": str(tmp_path)}  # as few as the oldest version had
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    assert words in refused(["resume", str(folder)], capsys)


def test_settings_changed_by_hand_are_refused_as_such(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What changes no weight may be changed there."""
    places = [f"--checkpoint={tmp_path / '-model'}", "--prior-images", str(tmp_path / "my photos"), "--device", "cpu"]
    places += ["--images", str(tmp_path / "my photos")]
    content = json.loads((trained / "config.json").read_text())
    rate = content["config"]["optimizer"]["learning_rate"]
    content["config"]["optimizer"]["learning_rate"] = 2 * rate
    (trained / "config.json").write_text(json.dumps(content))
    told = refused(["resume", str(trained), *places], capsys)
    assert "holds a run of other settings than its config.json says now: give what it began with" in told
    content["config"]["optimizer"]["learning_rate"] = rate
    content["config"]["output"]["snapshot_every"] = 3
    (trained / "config.json").write_text(json.dumps(content))
    assert cli.main(["resume", str(trained), *places]) == 0

"""`apt-train inspect`: from files to a verdict, a sheet and numbers; mistakes are one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from apt_train import cli
from tests.lora_files import attention_paths, kohya, random_layers
from tests.tiny import tiny_components


@pytest.fixture(autouse=True)
def short_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points on each instead of five, for time's sake."""
    monkeypatch.setattr("apt_train.lora_check.probe.STEPS", 4)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    unet = tiny_components().unet
    layers = random_layers(unet, attention_paths(unet), size=0.05)
    save_file(kohya(layers), tmp_path / "strange.safetensors", {"apt_class_word": "toy"})
    return tmp_path / "strange.safetensors"


def arguments(lora: Path, model: Path, *more: str) -> list[str]:
    quick = ["--resolution", "32", "--draws", "1", "--unrelated", "a painting", "--device", "cpu", "--strengths", "1"]
    return ["inspect", str(lora), "--checkpoint", str(model), *quick, *more]


def test_it_prints_a_verdict_and_writes_a_sheet_and_numbers(
    lora: Path, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "looked at"
    more = ("--images", str(photos), "--sample-steps", "1", "--trigger", "sub toy", "--out", str(out))
    assert cli.main(arguments(lora, model, *more)) == 0
    shown = capsys.readouterr()
    numbers = json.loads((out / "check_up.json").read_text(encoding="utf-8"))
    assert shown.out.startswith(f"Use it at strength {numbers['strength']:g}.")
    assert f"Sheet: {out / 'check_up.png'}" in shown.out and "measuring the LoRA" in shown.err
    assert (numbers["lora"], numbers["class_word"], numbers["trigger"]) == ("strange.safetensors", "toy", "sub toy")
    assert numbers["pictures"] == 3 and numbers["strengths"][-1]["gain"]["mean"] != 0
    assert Image.open(out / "check_up.png").width == 1400
    assert sorted(path.name for path in out.iterdir()) == ["check_up.json", "check_up.png"]


def test_without_pictures_samples_or_a_place_of_its_own(
    lora: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments(lora, model, "--sample-steps", "0")) == 0
    assert (tmp_path / "runs" / "inspect-1" / "check_up.png").is_file()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--class-word", "dog", "--trigger", "embedding:dog"), "that learned word was not found"),
        (("--strengths", "0"), "A strength is not between 0 and 10"),
        (("--draws", "0"), "draws is below 1"),
        (("--unrelated", "my toy"), "Every unrelated prompt names the class word"),
        (("--resolution", "33"), "does not fit the model"),
        (("--images", "nowhere"), "nowhere"),
        (("--precision", "fp16"), "precision is fp16 on the CPU"),
    ],
)
def test_mistakes_are_one_sentence(
    lora: Path, model: Path, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(lora, model, *more)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("apt-train: ")]
    assert len(told) == 1 and says in told[0]


def test_a_file_that_is_no_lora_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04")
    assert cli.main(["inspect", str(tmp_path / "a.pt"), "--checkpoint", "nowhere"]) == 2
    assert "is a pickle" in capsys.readouterr().err

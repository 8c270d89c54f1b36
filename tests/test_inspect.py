"""`apt-train inspect`: from files to a verdict, a sheet and numbers; mistakes are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from apt_train import cli
from apt_train.families.components import Components
from apt_train.lora_check.findings import CheckUp
from tests.command_line import options_of
from tests.lora_files import attention_paths, kohya, peft, random_layers
from tests.tiny import tiny_components, tiny_unet


@pytest.fixture(autouse=True)
def short_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points on each instead of five, for time's sake."""
    monkeypatch.setattr("apt_train.sample.trajectories.STEPS", 4)


@cache
def strange_lora() -> bytes:
    unet = tiny_unet()
    return save(kohya(random_layers(unet, attention_paths(unet), size=0.05)), {"apt_class_word": "toy"})


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    (tmp_path / "strange.safetensors").write_bytes(strange_lora())
    return tmp_path / "strange.safetensors"


def arguments(lora: Path, model: Path, *more: str) -> list[str]:
    quick = {"--resolution": "32", "--unrelated": "a painting", "--device": "cpu", "--strengths": "1"}
    if "--images" in more:
        quick["--draws"] = "1"
    usual = [word for option, value in quick.items() if option not in more for word in (option, value)]
    return ["inspect", str(lora), "--checkpoint", str(model), *usual, *more]


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


def test_it_prints_that_diffusers_applies_a_lora_at_another_strength(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet, path = tiny_unet(), tmp_path / "pytorch_lora_weights.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 1})}
    path.write_bytes(save(peft(random_layers(unet, attention_paths(unet), size=0.05)), metadata))
    more = ("--sample-steps", "0", "--class-word", "toy", "--out", str(tmp_path / "out"))
    assert cli.main(arguments(path, model, *more)) == 0
    assert "there strength 0.25 is what was trained." in capsys.readouterr().out


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
        (("--images", "photos", "--draws", "0"), "draws is 0: give a whole number from 1 to 64"),
        (("--sample-steps", "-1"), "sample_steps is -1"),
        (("--resolution", "-32"), "resolution is -32"),
        (("--seed", "-1"), "seed is -1"),
        (("--precision", "fp8"), "precision is 'fp8': choose one of auto, fp32, bf16, fp16"),
        (("--unrelated", *["a lamp"] * 101), "unrelated is 101 texts: give 100 or fewer"),
        (("--prompt", "a {subject} " * 1000), "prompt is 12000 letters long: write some sentences"),
        (("--strengths", *(f"0.{n}" for n in range(10, 40))), "strengths is 30 numbers: give 20 or fewer"),
        (("--prompt", "a dog"), "prompt is 'a dog': write {subject}"),
        (("--prompt", "a \0 toy"), "leave out what is no letter"),
        (("--class-word", "{subject}"), "class_word is '{subject}'"),
        (("--images", ""), "is empty"),
        (("--draws", "2"), "--draws does nothing without --images"),
        (("--background", "red"), "--background does nothing without --images"),
        (("--seed", "1", "--sample-steps", "0"), "--seed does nothing without --sample-steps above 0"),
        (("--device", "meta"), "The device meta cannot be used here"),
        (("--device", "hpu"), "The device hpu cannot be used here"),
        (("--device", "privateuseone"), "The device privateuseone cannot be used here"),
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


@pytest.mark.parametrize("written", ["photos", "./photos/", "photos/../photos", "link"])
def test_its_sheet_does_not_come_among_the_pictures(
    lora: Path, model: Path, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The next run would train on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    assert cli.main(arguments(lora, model, "--images", "photos", "--out", written)) == 2
    assert "among the pictures, where the sheet would be trained on" in capsys.readouterr().err


def test_a_file_that_is_no_lora_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04")
    assert cli.main(["inspect", str(tmp_path / "a.pt"), "--checkpoint", "nowhere"]) == 2
    assert "is a pickle" in capsys.readouterr().err


# ---- every option has its effect ---------------------------------------------------------------------------------


Seen = tuple[dict[str, Any], bytes, dict[str, Any]]  # the numbers, the newest sample, what the checkpoint is read with


@pytest.fixture
def looked(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """An inspection without a model's files and without the drawing."""
    given: dict[str, Any] = {}

    def load(path: str, **told: Any) -> Components:
        given.update(checkpoint=path, **told)
        return tiny_components()

    def newest_sample(found: CheckUp) -> Image.Image:
        return found.samples[-1] if found.samples else Image.new("RGB", (8, 8))

    monkeypatch.setattr("apt_train.families.load.load_checkpoint", load, raising=False)
    monkeypatch.setattr("apt_train.lora_check.sheet.sheet", newest_sample)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for n in range(2):
        Image.new("RGBA", (32, 32), (200, 40 * n, 0, 90)).save(tmp_path / "photos" / f"{n}.png")
    save_file({"clip_l": torch.ones(2, 32)}, tmp_path / "my_word.safetensors")

    def look(*options: str) -> Seen:
        if options not in _SEEN:
            assert cli.main([*arguments(lora, Path("model"), "--out", "out", "--sample-steps", "1", *options)]) == 0
            numbers = json.loads(Path("out/check_up.json").read_text(encoding="utf-8"))
            _SEEN[options] = numbers, Image.open("out/check_up.png").tobytes(), dict(given)
        return _SEEN[options]

    return look


_SEEN: dict[tuple[str, ...], Seen] = {}  # by its options: the files are the same in every test


def gains(seen: Seen) -> list[float]:
    return [point["gain"]["mean"] for point in seen[0]["strengths"]]


def drifts(seen: Seen) -> list[float]:
    return [point["unrelated"] for point in seen[0]["strengths"]]


PHOTOS = ("--images", "photos")
WORDS = ("--class-word", "dog", "--trigger", "sub dog", "--prompt", "a big {subject}", "--unrelated", "a ball",
         "--strengths", "1", "0.5", "1")  # fmt: skip
LOADING = ("--tokenizer", "words", "--vae", "vae", "--prediction-type", "v_prediction", "--zero-terminal-snr")
EFFECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Seen], Any], Any]] = {
    # option: without it, with it, what to look at, what it is with it (...: another than without)
    "--checkpoint": ((), (), lambda seen: seen[2]["checkpoint"], "model"),
    "--images": ((), PHOTOS, lambda seen: seen[0]["pictures"], 2),
    "--class-word": ((), WORDS, lambda seen: seen[0]["class_word"], "dog"),
    "--trigger": ((), WORDS, lambda seen: seen[0]["trigger"], "sub dog"),
    "--embedding": ((), ("--embedding", "my_word.safetensors"), lambda seen: seen[0]["trigger"], "embedding:my_word"),
    "--prompt": ((), WORDS, lambda seen: seen[0]["prompts"]["subject"], ["a big {subject}"]),
    "--unrelated": ((), WORDS, lambda seen: seen[0]["prompts"]["unrelated"], ["a ball"]),
    "--strengths": ((), WORDS, lambda seen: [point["strength"] for point in seen[0]["strengths"]], [0.5, 1.0]),
    "--draws": (PHOTOS, (*PHOTOS, "--draws", "2"), gains, ...),
    "--background": (PHOTOS, (*PHOTOS, "--background", "blue"), gains, ...),
    "--sample-steps": ((), ("--sample-steps", "2"), lambda seen: seen[1], ...),
    "--seed": ((), ("--seed", "1"), lambda seen: seen[1], ...),
    "--resolution": ((), ("--resolution", "0"), drifts, ...),
    "--precision": ((), ("--precision", "bf16"), drifts, ...),
    "--tokenizer": ((), LOADING, lambda seen: seen[2]["tokenizer"], "words"),
    "--vae": ((), LOADING, lambda seen: seen[2]["vae"], "vae"),
    "--prediction-type": ((), LOADING, lambda seen: seen[2]["prediction_type"], "v_prediction"),
    "--zero-terminal-snr": ((), LOADING, lambda seen: seen[2]["zero_terminal_snr"], True),
}
ELSEWHERE = {"--device", "--out", "file"}  # above: one that is refused, where it is written, what is looked over


@pytest.mark.parametrize("option", EFFECTS)
def test_an_option_has_its_effect(option: str, looked: Callable[..., Seen]) -> None:
    without, given, of, expected = EFFECTS[option]
    found = of(looked(*given))
    if expected is not ...:
        assert found == expected
    if without != given:
        assert found != of(looked(*without))


def test_every_option_is_tried() -> None:
    assert set(EFFECTS) | ELSEWHERE == options_of("inspect")


def test_size_0_is_the_models_own(looked: Callable[..., Seen]) -> None:
    assert drifts(looked("--resolution", "0")) == drifts(looked("--resolution", "64"))


# ---- the learned word --------------------------------------------------------------------------------------------


def test_a_learned_word_is_given_by_its_file(looked: Callable[..., Seen]) -> None:
    """Its trigger is its name, where neither the user nor the LoRA says another; and the rows count."""
    by_file = looked("--embedding", "my_word.safetensors")
    named = looked("--embedding", "my_word.safetensors", "--trigger", "embedding:other")
    assert (by_file[0]["trigger"], named[0]["trigger"]) == ("embedding:my_word", "embedding:other")
    save_file({"clip_l": -torch.ones(2, 32)}, "negative.safetensors")
    negative = looked("--embedding", "negative.safetensors")
    assert negative[0]["trigger"] == "embedding:negative" and drifts(negative) == drifts(by_file)
    assert negative[0]["strengths"] != by_file[0]["strengths"]
    beside = looked("--trigger", "embedding:negative")
    assert (beside[0]["trigger"], beside[0]["strengths"]) == ("embedding:negative", negative[0]["strengths"])


@pytest.mark.parametrize(
    ("tensors", "more", "says"),
    [
        (
            {"clip_l": torch.ones(2, 32)},
            ("--trigger", "sub toy"),
            "--trigger is 'sub toy', so --embedding does nothing",
        ),
        ({"x": torch.ones(3)}, (), "holds no learned word"),
        ({"clip_l": torch.ones(0, 32)}, (), "holds no learned word"),
        ({"clip_l": torch.ones(2, 32, dtype=torch.int8)}, (), "holds no learned word"),
        ({"clip_l": torch.full((2, 32), float("nan"))}, (), "holds values that are not numbers"),
        ({"clip_g": torch.ones(2, 32)}, (), "has no rows for this model's clip_l"),
        ({"clip_l": torch.ones(2, 31)}, (), "has no rows for this model's clip_l"),
    ],
)
def test_an_embedding_that_cannot_be_is_refused(
    tensors: dict[str, torch.Tensor], more: tuple[str, ...], says: str, lora: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    word = tmp_path / "word.safetensors"
    save_file(tensors, word)
    assert cli.main(arguments(lora, model, "--embedding", str(word), *more)) == 2
    assert says in capsys.readouterr().err


def test_a_damaged_embedding_that_is_not_asked_for_is_not_read(looked: Callable[..., Seen], lora: Path) -> None:
    lora.with_name(f"{lora.stem}_embedding.safetensors").write_bytes(b"x")
    assert looked("--trigger", "sub painting")[0]["trigger"] == "sub painting"

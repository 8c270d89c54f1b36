"""The drawn world, the model pretrained on it and the judge."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apt_train.demo.judge import load_judge
from benchmarks.world import draw

ASSETS = Path(__file__).resolve().parents[1] / "apt_train" / "assets"
MODEL = ASSETS / "drawn_world"
DEMO = ASSETS / "demo"

needs_model = pytest.mark.skipif(not (MODEL / "model_index.json").exists(), reason="the embedded model is not here")


pytestmark = pytest.mark.usefixtures("one_thread")


def read_picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def signed(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_a_picture_is_a_function_of_seed_and_index() -> None:
    first, caption, scene = draw.world_item(3, 17)
    again, same_caption, same_scene = draw.world_item(3, 17)
    other, _, _ = draw.world_item(4, 17)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and caption == same_caption and scene == same_scene
    assert draw.world_scene(3, 17) == scene
    assert not np.array_equal(first, other)


def test_held_out_scenes_are_never_drawn() -> None:
    looks = {scene.look for scene in draw.subjects().values()}
    scenes = [draw.world_scene(0, index) for index in range(4000)]
    assert not any(scene.look in looks or draw.is_fresh(scene) for scene in scenes)
    rng = np.random.default_rng(0)
    unfiltered = [draw.random_scene(rng) for _ in range(4000)]
    assert any(scene.look in looks for scene in unfiltered), "the check above must be able to fail"
    assert 0.05 < np.mean([draw.is_fresh(scene) for scene in unfiltered]) < 0.15


def test_there_are_enough_subjects_of_every_kind() -> None:
    subjects = draw.subjects()
    assert len(subjects) >= 9 and len({scene.look for scene in subjects.values()}) == len(subjects)
    assert {scene.shape for scene in subjects.values()} == set(draw.KINDS)
    assert all(scene.pattern != "plain" and scene.colour != scene.second for scene in subjects.values())


def test_captions_tell_the_truth() -> None:
    for index in range(1500):
        rng = np.random.default_rng([5, index])
        scene = draw.random_scene(rng)
        words = set(draw.random_caption(scene, rng).split())
        assert words & set(draw.SHAPES) <= {scene.shape}
        assert words & set(draw.COLOURS) <= {scene.colour, scene.second}
        assert words & set(draw.PATTERNS) <= {scene.pattern}
        assert words & set(draw.GROUNDS) <= {scene.ground}
        assert words & {"park", "city", "mountains", "night"} <= {scene.place}
        assert words & {"photo", "sketch", "painting", "pixel", "neon"} <= {scene.style.split()[0]}
        if scene.style != "photo":
            assert scene.style.split()[0] in words, "a caption without a style word is a photo's"


def test_demo_pictures_are_the_held_out_subject() -> None:
    name = next(iter(draw.subjects()))
    picture, _ = draw.subject_item(name, "grass", "park", "photo", seed=100)
    stored = read_picture(DEMO / "subject" / "1.png").astype(int)
    assert np.abs(stored - picture).max() <= 2  # image libraries may round differently
    assert "{subject}" in (DEMO / "subject" / "1.txt").read_text()


@needs_model
def test_model_folder_is_small_and_complete() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    for part in ("unet", "text_encoder", "tokenizer", "vae", "scheduler", "judge"):
        assert (MODEL / part).is_dir(), part


@needs_model
def test_every_caption_word_is_in_the_vocabulary() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL / "tokenizer")
    assert tokenizer.eos_token_id != 2 and tokenizer.model_max_length == 24
    for index in range(200):
        rng = np.random.default_rng([6, index])
        ids = tokenizer(draw.random_caption(draw.random_scene(rng), rng)).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids and len(ids) <= 24


@needs_model
def test_judge_knows_drawings_and_tells_subjects_apart() -> None:
    judge = load_judge()
    drawn = [draw.any_item(77, index) for index in range(60)]
    seen = judge.classify(signed([picture for picture, _ in drawn]))
    for name in ("shape", "ground", "style"):
        wanted = [getattr(scene, name) or "none" for _, scene in drawn]
        assert np.mean([s == w for s, w in zip(seen[name], wanted, strict=True)]) > 0.85, name
    reference = signed([read_picture(path) for path in sorted((DEMO / "heldout").glob("*.png"))])
    same = signed([read_picture(path) for path in sorted((DEMO / "subject").glob("*.png"))])
    other = signed([draw.subject_item(name, "grass", "park", "photo", 5)[0] for name in list(draw.subjects())[1:]])
    assert judge.fidelity(same, reference).min() > judge.fidelity(other, reference).max() + 0.2


@needs_model
def test_samples_show_what_the_prompt_says() -> None:
    from benchmarks.world.evaluate import load_pipeline, sample, score

    scenes = [
        draw.Scene("ball", "red", "red", ground="grass", place="park", style="photo"),
        draw.Scene("mug", "blue", "blue", ground="wood", place="city", style="sketch"),
        draw.Scene("duck", "yellow", "yellow", ground="water", place="park", style="photo"),
        draw.Scene("box", "green", "green", ground="snow", place="mountains", style="pixel art"),
        draw.Scene("car", "pink", "pink", ground="sand", place="city", style="neon art"),
        draw.Scene("hat", "purple", "purple", ground="bricks", place="park", style="painting"),
    ]
    images = sample(load_pipeline(MODEL), [draw.full_caption(s) for s in scenes], guidance=4.0, steps=15, seed=3)
    shares, _ = score(load_judge(), images, scenes)
    assert min(shares[name] for name in ("colours", "shape", "ground", "style")) >= 4 / 6, shares


@needs_model
def test_the_evaluation_writes_numbers_counts_and_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.world import evaluate

    monkeypatch.setattr(sys, "argv", ["evaluate", "--out", str(tmp_path), "--samples", "2", "--steps", "1"])
    evaluate.main()
    assert json.loads((tmp_path / "accuracy.json").read_text())["samples"] == 2
    shapes = (tmp_path / "confusion.md").read_text().partition("## shape\n\n")[2].partition("\n\n")[0]
    assert sum(map(int, re.findall(r" (\d+)(?= \|)", shapes))) == 2
    with Image.open(tmp_path / "sample_sheet.png") as sheet:
        assert sheet.width > 2 * draw.SIZE * len(evaluate.SHEET_PROMPTS)
        assert sheet.height > 2 * draw.SIZE * len(draw.STYLES)

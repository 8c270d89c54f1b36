"""The quality benchmark on a checkpoint and pictures of one's own: subjects from a folder, CLIP and DINOv2 as judges.

All networks are random and tiny, written to disk as published folders are: the measures' arithmetic is held to what
transformers gives by hand, and what a whole unit says to being finite. Nothing here says how well real ones judge.
"""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, PreTrainedModel

from apt_train.config import AptConfig
from apt_train.errors import InputError
from apt_train.text.captions import SUBJECT
from benchmarks.quality import __main__ as command
from benchmarks.quality.grid import PRIOR, Grid, Unit, Variant
from benchmarks.quality.grids import GRIDS
from benchmarks.quality.real_judge import BATCH, RealJudge, load_networks
from benchmarks.quality.real_subjects import (
    OTHERS,
    TEMPLATES,
    WITH_HELDOUT,
    WITHOUT_HELDOUT,
    prompts_for,
    real_subject,
    subject_names,
)
from benchmarks.quality.real_task import real_task
from benchmarks.quality.subjects import KINDS, Prompt
from benchmarks.quality.task import Task
from benchmarks.quality.unit import run_unit
from benchmarks.quality.world_task import world_task
from tests.tiny_checkpoint import tiny_modules, write_clip_vocabulary, write_diffusers_folder

SIDE = 32  # pixels that the judges see
MEAN, DEVIATION = [0.5, 0.4, 0.6], [0.3, 0.2, 0.25]  # that they take off the colours and divide by
MEASURES = {"fidelity", "clip_i", "aligned", "copied", "leak", "aligned_elsewhere"}
NETWORKS = ("clip", "dino", "hps")


pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Blocks of colour, different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


# -- folders


def write_clip(folder: Path, seed: int, logit_scale: float) -> Path:
    """As a published CLIP folder: weights, preprocessor, vocabulary."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 600, "bos_token_id": 518, "eos_token_id": 519, "pad_token_id": 519}
    vision = {**tower, "image_size": SIDE, "patch_size": 8, "initializer_range": 1.0}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=logit_scale)
    write_network(folder, CLIPModel(config), "CLIPImageProcessor", seed)
    write_clip_vocabulary(folder)
    return folder


def write_dino(folder: Path) -> Path:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    return write_network(folder, Dinov2Model(config), "BitImageProcessor", seed=5)


def write_network(folder: Path, model: PreTrainedModel, processor: str, seed: int) -> Path:
    """Weights redrawn wide, so that pictures and texts differ in them."""
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "logit_scale" and parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=draws) * 0.3
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": processor,
                "size": {"shortest_edge": SIDE},
                "crop_size": {"height": SIDE, "width": SIDE},
                "resample": 3,
                "image_mean": MEAN,
                "image_std": DEVIATION,
                **{name: True for name in ("do_resize", "do_center_crop", "do_normalize", "do_rescale")},
            }
        )
    )
    return folder


def write_subject(folder: Path, class_word: str, training: int, heldout: int = 0) -> Path:
    (folder / "heldout").mkdir(parents=True) if heldout else folder.mkdir(parents=True)
    (folder / "class_word.txt").write_text(class_word + "\n")
    for place, count, seed in ((folder, training, 0), (folder / "heldout", heldout, 100)):
        for index in range(count):
            noise(seed + index).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, three networks, and the subjects `pot`, with a held-out picture, and `bare`, without: read only."""
    folder = tmp_path_factory.mktemp("real")
    write_diffusers_folder(folder / "checkpoint", tiny_modules("sd15"))
    write_clip(folder / "clip", seed=1, logit_scale=2.0)
    write_clip(folder / "hps", seed=2, logit_scale=3.0)
    write_dino(folder / "dino")
    pot = write_subject(folder / "subjects" / "pot", "flower pot", training=2, heldout=1)
    (pot / "1.txt").write_text("{subject} on the grass\n")
    write_subject(folder / "subjects" / "bare", "ball", training=1)
    return folder


def judge_of(place: Path, name: str = "pot", *networks: str) -> RealJudge:
    paths = {network: place / network for network in networks}
    found = load_networks(place / "clip", paths.get("dino"), paths.get("hps"))
    return RealJudge(real_subject(name, place / "subjects"), found)


def scored(judge: RealJudge, *named: Image.Image) -> dict[str, float]:
    """Of these pictures of the subject, one of the class and one of something else."""
    prompts = [*(Prompt(f"a photo of {SUBJECT}", "subject") for _ in named), Prompt("a ball", "class")]
    pictures = [*named, noise(50), noise(51)]
    return judge.score(pictures, [*prompts, Prompt("a dog", "other")], pictures)


# -- subjects


def test_a_subject_is_read_from_its_folder(place: Path) -> None:
    assert subject_names(place / "subjects") == ["bare", "pot"]
    subject = real_subject("pot", place / "subjects")
    assert subject.class_word == "flower pot" and subject.group == WITH_HELDOUT
    assert [item.caption for item in subject.training] == ["a photo of {subject}", "{subject} on the grass"]
    assert np.array_equal(np.asarray(subject.heldout[0].picture), np.asarray(noise(100)))
    assert [image.pixels.shape for image in subject.images.images] == [(3, 40, 48)] * 2
    bare = real_subject("bare", place / "subjects")
    assert bare.heldout == [] and bare.group == WITHOUT_HELDOUT


def test_prompts_come_kind_by_kind_and_round_again() -> None:
    prompts = prompts_for("flower pot")
    texts = {kind: [prompt.text for prompt in prompts if prompt.kind == kind] for kind in KINDS}
    assert [prompt.kind for prompt in prompts] == ["subject"] * 64 + ["class"] * 32 + ["other"] * 128
    assert all(text.count(SUBJECT) == 1 for text in texts["subject"]) and len(set(texts["subject"])) == len(TEMPLATES)
    assert texts["class"][:16] == [text.replace(SUBJECT, "a flower pot") for text in TEMPLATES]
    assert set(texts["other"]) == set(OTHERS) and not any(prompt.expect for prompt in prompts)
    assert [len(prompts_for("pot", share)) for share in (0.5, 0.01)] == [112, 12]


def test_other_prompts_are_not_about_the_class() -> None:
    texts = {prompt.text for prompt in prompts_for("old violin") if prompt.kind == "other"}
    assert set(OTHERS) - texts == {"a portrait of an old fisherman", "a violin on a velvet cloth"}


def spoilt(damage: str, folder: Path) -> None:
    """A folder of subjects with one thing wrong."""
    pot = write_subject(folder / "pot", "pot", training=1)
    if damage == "no class word":
        (pot / "class_word.txt").unlink()
    elif damage == "two lines":
        (pot / "class_word.txt").write_text("pot\nvase\n")
    elif damage == "no pictures":
        (pot / "0.png").unlink()
    elif damage == "no pictures held out":
        (pot / "heldout").mkdir()
    elif damage == "broken picture":
        (pot / "0.png").write_bytes(b"no picture")
    elif damage == "caption":
        (pot / "0.txt").write_text("a photo of my dog")
    elif damage == "name":
        pot.rename(folder / "my pot")
    elif damage == "no subjects":
        shutil.rmtree(pot)
    elif damage == "one subject":
        write_subject(folder / "x", "x", training=1)
        (folder / "class_word.txt").write_text("pot")
    else:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no class word", ("pot", "class_word.txt", "write what")),
        ("two lines", ("class_word.txt has 2 lines", "write what")),
        ("no pictures", ("There are no pictures in", "pot", "put png")),
        ("no pictures held out", ("There are no pictures in", "heldout", "put png")),
        ("broken picture", ("pot", "0.png cannot be read", "replace it")),
        ("caption", ("pot", "0.png", "my dog", "write {subject}")),
        ("name", ("'my pot'", "rename it")),
        ("no subjects", ("holds no sub-folder", "make one per subject")),
        ("one subject", ("is one subject", "give the folder above")),
        ("no folder", ("does not exist", "give one")),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_words(damage: str, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "subjects"
    spoilt(damage, folder)
    with pytest.raises(InputError) as refused:
        for name in subject_names(folder):
            real_subject(name, folder)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_a_name_that_leads_elsewhere_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match="rename it"):
        real_subject("../subjects/pot", place / "subjects")


def test_pictures_left_out_are_named(tmp_path: Path) -> None:
    (write_subject(tmp_path / "pot", "pot", training=1) / "2.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match="2.heic is left out") as told:
        real_subject("pot", tmp_path)
    assert len(told) == 1


# -- judge


@pytest.mark.parametrize("networks", [(), ("dino",)], ids=["clip", "dino"])
def test_fidelity_is_one_for_a_held_out_picture(place: Path, networks: tuple[str, ...]) -> None:
    judge = judge_of(place, "pot", *networks)
    same, other = scored(judge, noise(100)), scored(judge, noise(7))
    assert same["fidelity"] == pytest.approx(1, abs=1e-5) and same["clip_i"] == pytest.approx(1, abs=1e-5)
    assert other["fidelity"] < 0.98 and other["clip_i"] < 0.98
    assert scored(judge, noise(100), noise(7))["fidelity"] == pytest.approx((1 + other["fidelity"]) / 2, abs=1e-5)
    assert (other["fidelity"] == other["clip_i"]) is (networks == ())


def test_copied_is_one_for_a_training_picture(place: Path) -> None:
    judge = judge_of(place, "pot", "dino")
    assert scored(judge, noise(0), noise(1))["copied"] == pytest.approx(1, abs=1e-5)
    assert scored(judge, noise(0), noise(1))["fidelity"] < 0.98
    assert scored(judge, noise(100))["copied"] < 0.98


def test_leak_is_the_likeness_of_the_classs_pictures(place: Path) -> None:
    judge = judge_of(place)
    prompts = [Prompt("a ball", "subject"), Prompt("a ball", "class"), Prompt("a ball", "other")]
    leaked = judge.score([noise(7), noise(100), noise(8)], prompts, [])
    assert leaked["leak"] == pytest.approx(1, abs=1e-5) and leaked["fidelity"] < 0.98


def test_without_held_out_pictures_fidelity_is_to_the_training_pictures(place: Path) -> None:
    found = scored(judge_of(place, "bare"), noise(0))
    assert found["fidelity"] == pytest.approx(1, abs=1e-5) and found["copied"] == pytest.approx(1, abs=1e-5)


def by_hand(folder: Path, pictures: list[Image.Image], texts: list[str]) -> torch.Tensor:
    """transformers' own logits of each picture with its text; the pictures made ready by hand."""
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    cut = [picture.resize((38, 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32)) for picture in pictures]
    pixels = (np.stack([np.asarray(picture) for picture in cut]) / 255 - MEAN) / DEVIATION
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder)
        output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    return output.logits_per_image.diagonal()


def test_aligned_and_hps_are_what_transformers_gives_by_hand(place: Path) -> None:
    judge, pictures = judge_of(place, "pot", "hps"), [noise(seed) for seed in range(4)]
    prompts = [
        Prompt("a photo of {subject}", "subject"),
        Prompt("a dog on {subject}", "subject"),
        Prompt("a flower pot", "class"),
        Prompt("a dog", "other"),
    ]
    texts = ["a photo of flower pot", "a dog on flower pot", "a flower pot", "a dog"]
    found = judge.score(pictures, prompts, [])
    cosine = by_hand(place / "clip", pictures, texts) / np.exp(2.0)
    assert found["aligned"] == pytest.approx(float(cosine[:2].mean()), abs=1e-5)
    assert found["aligned_elsewhere"] == pytest.approx(float(cosine[2:].mean()), abs=1e-5)
    liked = by_hand(place / "hps", pictures, texts)
    assert found["hps"] == pytest.approx(float(liked[:2].mean()), rel=1e-4)
    assert found["hps_elsewhere"] == pytest.approx(float(liked[2:].mean()), rel=1e-4)
    other = judge.score(pictures, [Prompt("in the snow", "subject"), *prompts[1:]], [])
    assert abs(other["aligned"] - found["aligned"]) > 1e-3, "another text must be able to change it"


def test_features_are_unit_embeddings_whatever_the_batch(place: Path) -> None:
    judge, pictures = judge_of(place), [noise(seed) for seed in range(BATCH + 1)]
    found = judge.features(pictures)["all"]
    assert found.shape == (BATCH + 1, 24) and found.dtype == np.float64 and "clip" in judge.space
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(BATCH + 1), abs=1e-6)
    assert judge.features(pictures[-1:])["all"][0] == pytest.approx(found[-1], abs=1e-5)


def test_half_precision_weights_are_computed_in_float32(place: Path, tmp_path: Path) -> None:
    half = shutil.copytree(place / "clip", tmp_path / "half")
    CLIPModel.from_pretrained(half).half().save_pretrained(half)
    found = load_networks(half).clip.pictures([noise(3)])
    whole = load_networks(place / "clip").clip.pictures([noise(3)])
    assert found.dtype == torch.float32 and torch.allclose(found, whole, atol=0.02)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def halved(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def text_tower_alone(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_model")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def of_a_kernel(folder: Path) -> None:
    """Which transformers would look for where its libraries are installed."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {"attn_implementation": "x/y"}}))


def of_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x/y--z.Model"}}))


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def of_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ("no readable config.json", "give a transformers folder")),
        (remove("model.safetensors"), ("holds no weights", "get the model's .safetensors")),
        (pickled, ("pytorch_model.bin only, a pickle", "get the model's .safetensors")),
        (halved, ("cannot be loaded", "get it again")),
        (remove("preprocessor_config.json"), ("preprocessor_config.json", "get the whole model")),
        (of_a_kernel, ("has attn_implementation", "take that line out")),
        (of_remote_code, ("has auto_map", "take that line out")),
        (a_list, ("no readable config.json", "give a transformers folder")),
        (of_another_kind, ("holds a model of type siglip", "give one of")),
    ],
    ids=["config", "weights", "pickle", "halved", "preprocessor", "kernel", "code", "list", "kind"],
)
def test_a_network_that_cannot_be_used_is_refused_in_words(
    network: str, damage: Callable[[Path], None], words: tuple[str, ...], place: Path, tmp_path: Path
) -> None:
    damage(shutil.copytree(place / network, tmp_path / network))
    paths = {"clip": place / "clip", network: tmp_path / network}
    with pytest.raises(InputError) as refused:
        load_networks(paths["clip"], paths.get("dino"), paths.get("hps"))
    said, what = str(refused.value), {"clip": "CLIP", "dino": "DINOv2", "hps": "HPSv2"}[network]
    assert all(word in said for word in (*words, what, str(tmp_path / network))), said


def test_weights_that_are_missing_are_not_drawn_at_random(place: Path, tmp_path: Path) -> None:
    text_tower_alone(shutil.copytree(place / "clip", tmp_path / "clip"))
    with pytest.raises(InputError, match="lacks weights, vision_model"):
        load_networks(tmp_path / "clip")


def test_a_clip_without_vocabulary_is_refused(place: Path, tmp_path: Path) -> None:
    (shutil.copytree(place / "clip", tmp_path / "clip") / "vocab.json").unlink()
    with pytest.raises(InputError, match="neither vocab.json and merges.txt nor tokenizer.json"):
        load_networks(tmp_path / "clip")


# -- the task, and whole units


def make_task(place: Path) -> Callable[[], Task]:
    paths = {network: place / network for network in NETWORKS}
    return functools.partial(real_task, place / "checkpoint", place / "subjects", **paths, device="cpu", share=0.05)


def test_a_variant_means_the_same_as_on_the_drawn_world(place: Path) -> None:
    """Also where it names no constant, and a default has changed since the grids were fixed."""
    variants = {name: grid.variants[name] for grid in (GRIDS["parts"], GRIDS["verdict"]) for name in grid.variants}
    real, world = make_task(place)().recipe, world_task().recipe
    for variant in variants.values():
        one, other = (variant.config(recipe, "toy", 0).apt for recipe in (real, world))
        assert one == other
    assert variants["aa"].config(real, "toy", 0).apt.attn_weight == 1.0 != AptConfig().attn_weight


def test_the_task_can_be_made_in_another_process(place: Path) -> None:
    task = pickle.loads(pickle.dumps(make_task(place)))()
    assert task.device == "cpu" and task.name == "checkpoint on subjects"
    assert task.judge(task.subject("bare")).space == "unit image embedding of clip"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command would run: the task's maker, the grid, the folder, the processes."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(command, "run_grid", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(command, "write_report", lambda *_: "")
    return calls


def asked(place: Path, *more: str) -> list[str]:
    folders = {"checkpoint": "checkpoint", "subjects": "subjects", "clip": "clip", "out": "out"}
    return [*(f"--{name}={place / folder}" for name, folder in folders.items()), *more]


def test_the_command_hands_every_network_on(place: Path, ran: list[tuple[Any, ...]]) -> None:
    assert command.main(asked(place, f"--hps={place / 'hps'}", f"--dino={place / 'dino'}", "--device=cpu")) == 0
    make, grid, folder, workers = ran[0]
    scores = scored(make().judge(make().subject("pot")), noise(3))
    assert "hps" in scores and scores["fidelity"] != pytest.approx(scores["clip_i"])  # DINOv2's is not CLIP's
    assert grid.subjects == ("bare", "pot") and grid.seeds == (0, 1, 2) and workers == 1 and folder == place / "out"
    assert command.main(asked(place, "--device=meta", "--seeds=2")) == 0
    assert ran[1][1].seeds == (0, 1) and ran[1][1].task != grid.task
    assert ran[1][0].keywords["device"] == "meta"


def test_other_photos_are_another_grid(place: Path, ran: list[tuple[Any, ...]], tmp_path: Path) -> None:
    shutil.copytree(place / "subjects", tmp_path / "subjects")
    here = [*asked(place), f"--subjects={tmp_path / 'subjects'}"]
    assert command.main(here) == 0
    noise(7).save(tmp_path / "subjects" / "pot" / "0.png")
    assert command.main(here) == 0
    assert ran[0][1].digest(Unit("pot", 0, "apt")) != ran[1][1].digest(Unit("pot", 0, "apt"))


def test_a_checkpoint_that_is_not_there_is_said_once(
    place: Path, ran: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*asked(place), "--checkpoint=none.safetensors"]) == 2 and ran == []
    assert "none.safetensors does not exist" in capsys.readouterr().err


def test_subjects_are_refused_before_anything_is_loaded(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of subjects"):
        real_task(tmp_path / "no checkpoint", tmp_path / "none", place / "clip")


GRID = Grid(
    subjects=("pot", "bare"),
    seeds=(0,),
    variants={PRIOR: Variant({}), "apt": Variant({"method": "apt"})},
    probe_at=(4,),
    sample_at=(4,),
    recipe={"steps": 4, "output": {"snapshot_every": 4}, "adapter": {"rank": 2}},
)


@pytest.mark.parametrize(("subject", "group"), [("pot", WITH_HELDOUT), ("bare", WITHOUT_HELDOUT)])
@pytest.mark.parametrize("variant", GRID.variants)
def test_a_unit_says_what_was_measured(variant: str, subject: str, group: str, place: Path) -> None:
    quick = {"sampling_steps": 2, "loss_repeats": 1, "drift_prompts": 2, "preservation_pictures": 2}
    task = replace(make_task(place)(), **quick, cache=place / "cache")
    found = run_unit(task, GRID, Unit(subject, 0, variant))
    assert "NaN" not in json.dumps(found) and found["unit"]["group"] == group
    last = found["snapshots"][-1]
    losses = last["prior_losses" if variant == PRIOR else "losses"]
    assert set(losses) == {"training", "augmented", "heldout"} - ({"heldout"} if subject == "bare" else set())
    assert set(last["score"]) == MEASURES | {"hps", "hps_elsewhere"}
    assert all(-1 <= last["score"][name] <= 1 for name in MEASURES)
    assert set(last["distances"]) == {"elsewhere"} and last["distances"]["elsewhere"]["fid"] >= 0

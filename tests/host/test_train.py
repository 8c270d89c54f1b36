"""`APT Train` on the real host: pictures, files, lists and masks, what the browser hears."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from apt_train.run.notices import read_notices

from ..lora_files import metadata_of
from .graphs import (
    CLIP,
    LEARNED,
    LORA,
    LOSSES,
    MODEL,
    SETTINGS,
    TRIGGER,
    half_transparent,
    image_batch,
    picture,
    train_node,
    training_graph,
    upload_pictures,
)
from .server import Host, HostError
from .trained import closest, equal, log_of, new_run, pixels, runs, shown_text, weights
from .workflows import Graph, checkpoint, text_to_image

SHOWN_LETTERS = 90  # of the line on a node as wide as in the templates: the classic editor shows two lines


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


# ---- pictures and files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("sd15", "learned"), ("sdxl_v", "learned"), pytest.param("sdxl", "word", marks=pytest.mark.slow)],
)
def test_the_lora_changes_the_picture_and_comes_back_from_its_file(
    host: Host, names: list[str], kind: str, mode: str
) -> None:
    """The trained wire, core Save LoRA with core Load LoRA, and our own file in output/loras: one picture."""
    g, node = training_graph(names, kind, {"identifier_mode": mode}, learning_rate=1e-2, seed=11, steps=2)
    model, _, vae = checkpoint(g, f"{kind}.safetensors")
    trigger = g.node("PreviewAny", source=node[TRIGGER])
    prompt = g.node("StringConcatenate", string_a="a photo of", string_b=node[TRIGGER], delimiter=" ")
    g.node("SaveLoRA", lora=node[LORA], prefix=f"loras/core_{kind}")
    g.node("LossGraphNode", loss=node[LOSSES], filename_prefix="loss")
    trained = text_to_image(g, node[MODEL], node[CLIP], vae, prompt[0])
    prior = text_to_image(g, model, node[CLIP], vae, prompt[0])
    result = host.run(g.prompt, timeout=400)
    tuned, before = (pixels(host, result.outputs[drawn.id]["images"][0]) for drawn in (trained, prior))
    assert np.abs(tuned - before).mean() > 0.5

    word = shown_text(result, trigger)
    assert word.startswith("embedding:my_toy_" if mode == "learned" else "my_toy toy")
    loras = (host.folder / "output" / "loras").glob("my_toy_*.safetensors")
    (file,) = [path.name for path in loras if base_of(path) == kind]
    assert (host.folder / "models" / "embeddings" / file).is_file() == (mode == "learned")
    for name in (f"core_{kind}_00001_.safetensors", file):
        g = Graph()
        model, clip, vae = checkpoint(g, f"{kind}.safetensors")
        loaded = g.node("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)
        text_to_image(g, loaded[0], loaded[1], vae, f"a photo of {word}")
        (entry,) = host.run(g.prompt, timeout=200).images
        assert np.array_equal(tuned, pixels(host, entry)), name
    assert "lora key not loaded" not in host.log_text()


def base_of(lora: Path) -> str:
    """The checkpoint's name in the file."""
    return metadata_of(lora)["ss_sd_model_name"].removesuffix(".safetensors")


def test_load_lora_model_takes_the_wire(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, learning_rate=1e-2, seed=11, steps=2)
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    wired = g.node("LoraModelLoader", model=model, lora=node[LORA], strength_model=1.0, bypass=False)
    drawn = [text_to_image(g, way, node[CLIP], vae, "a toy") for way in (node[MODEL], wired[0])]
    result = host.run(g.prompt)
    one, other = (pixels(host, result.outputs[node.id]["images"][0]) for node in drawn)
    assert np.array_equal(one, other)


def test_the_file_says_what_it_is(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, setting=LEARNED, seed=12)
    run = new_run(host, lambda: host.run(g.prompt))
    (path,) = [path for path in (host.folder / "output" / "loras").glob("my_toy_*.safetensors") if is_of(path, run)]
    metadata = metadata_of(path)
    assert metadata["modelspec.trigger_phrase"] == f"embedding:{path.stem}"
    assert path.stem in metadata["modelspec.usage_hint"] and "my_toy_embedding" not in json.dumps(metadata)
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_sd_model_name"] == "sd15.safetensors"
    assert str(host.folder) not in json.dumps(metadata)


def is_of(lora: Path, run: Path) -> bool:
    return equal(load_file(lora), load_file(run / "my_toy.safetensors"))


def test_the_samples_of_a_run_are_its_thumbnail(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, setting={"preview_every": 2, "preview_steps": 2}, seed=13)
    run = new_run(host, lambda: host.run(g.prompt))
    assert (run / "previews" / "step_000002_0_tuned.png").is_file()
    (found,) = [path for path in (host.folder / "output" / "loras").glob("my_toy_*.safetensors") if is_of(path, run)]
    assert metadata_of(found)["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_two_trainers_in_one_graph(host: Host, names: list[str]) -> None:
    g, first = training_graph(names, setting=LEARNED, seed=14, steps=2)
    images = g.prompt[first.id]["inputs"]["images"]
    second = train_node(g, checkpoint(g, "sd15.safetensors"), images, LEARNED, seed=14, steps=3)
    words = [g.node("PreviewAny", source=node[TRIGGER]) for node in (first, second)]
    g.node("SaveLoRA", lora=first[LORA], prefix="loras/first")
    g.node("SaveLoRA", lora=second[LORA], prefix="loras/second")
    result = host.run(g.prompt)
    one, other = (shown_text(result, word).removeprefix("embedding:") for word in words)
    assert one != other
    folder = host.folder / "output" / "loras"
    for stem, core in ((one, "first"), (other, "second")):
        assert equal(load_file(folder / f"{stem}.safetensors"), load_file(folder / f"{core}_00001_.safetensors"))


# ---- what goes in ------------------------------------------------------------------------------------------------


def test_lists_of_sizes_and_captions_from_a_folder(host: Host) -> None:
    """Core's folder loader: a list of pictures of different sizes, and their texts as a list."""
    folder = host.folder / "input" / "toys"
    folder.mkdir()
    for seed, size in enumerate([(64, 64), (96, 64)]):
        picture(seed, *size).save(folder / f"{seed}.png")
    (folder / "0.txt").write_text("a my_toy on grass")
    g = Graph()
    loaded = g.node("LoadImageTextDataSetFromFolder", folder="toys")
    train_node(g, checkpoint(g, "sd15.safetensors"), loaded[0], captions=loaded[1], seed=15)
    run = new_run(host, lambda: host.run(g.prompt))
    tags = json.loads(metadata_of(run / "my_toy.safetensors")["ss_tag_frequency"])["my_toy"]
    assert tags == {"a my_toy toy on grass": 1, "a photo of my_toy toy": 1}


def test_a_line_of_captions_per_image(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=16, captions="a {subject} in the snow\na toy on the table")
    run = new_run(host, lambda: host.run(g.prompt))
    tags = metadata_of(run / "my_toy.safetensors")["ss_tag_frequency"]
    assert "in the snow" in tags and "a my_toy toy on the table" in tags


def test_masks_weigh_the_loss(host: Host, names: list[str]) -> None:
    """A cut-out picture's mask is white where it is transparent: learned as it is, or turned round."""
    name = host.upload("cutout.png", half_transparent(picture(5)))
    losses = {}
    for how in ("none", "white", "black"):
        g = Graph()
        loaded = g.node("LoadImage", image=name)
        wired, setting = ({}, {}) if how == "none" else ({"masks": loaded[1]}, {"mask_counts": how})
        train_node(g, checkpoint(g, "sd15.safetensors"), loaded[0], setting, seed=17, method="DreamBooth", **wired)
        losses[how] = [line["denoising"] for line in log_of(new_run(host, lambda g=g: host.run(g.prompt)))]
    assert losses["none"] != losses["white"] != losses["black"] != losses["none"]
    halves = (losses["white"][0] + losses["black"][0]) / 2
    assert halves == pytest.approx(losses["none"][0], rel=0.02)


@pytest.mark.parametrize("counts", ["white", "black"])
def test_a_mask_that_leaves_the_subject_out_is_told(host: Host, counts: str) -> None:
    """Load Image's MASK of a cut-out picture is white around it."""
    cutout = picture(7).convert("RGBA")
    cutout.putalpha(ImageOps.expand(Image.new("L", (32, 32), 255), 16, 0))
    g = Graph()
    loaded = g.node("LoadImage", image=host.upload("in_the_middle.png", cutout))
    setting = {"mask_counts": counts}
    train_node(g, checkpoint(g, "sd15.safetensors"), loaded[0], setting, seed=19, steps=1, masks=loaded[1])
    run = new_run(host, lambda: host.run(g.prompt))
    told = [notice.text for notice in read_notices(run) if "look inverted" in notice.text]
    assert bool(told) == (counts == "white")
    assert all("picture 1." in text and "set mask_counts to black" in text for text in told)


def test_a_picture_without_transparency_has_no_mask(host: Host, names: list[str]) -> None:
    """Load Image gives 64 x 64 zeros then; the pictures here have another size."""
    name = host.upload("wide.png", picture(6, 128, 64))
    g = Graph()
    loaded = g.node("LoadImage", image=name)
    train_node(g, checkpoint(g, "sd15.safetensors"), loaded[0], masks=loaded[1], seed=18, steps=1)
    host.run(g.prompt)


def test_a_lora_on_the_model_is_part_of_what_is_trained_on(host: Host, names: list[str], checkpoints: Any) -> None:
    """Training on MODEL + LoRA gives what training on the checkpoint with that LoRA merged into its file gives."""
    module = "middle_block.1.transformer_blocks.0.attn2.to_k"
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 768, generator=draw), torch.randn(320, 4, generator=draw) / 30
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}
    (host.folder / "models" / "loras").mkdir(exist_ok=True)
    save_file(lora, host.folder / "models" / "loras" / "prior.safetensors")
    tensors = {key: value.float() for key, value in load_file(checkpoints["sd15"]).items()}
    tensors[f"model.diffusion_model.{module}.weight"] += up @ down
    save_file(tensors, host.folder / "models" / "checkpoints" / "merged.safetensors")

    def trained(kind: str, strength: float) -> dict[str, torch.Tensor]:
        g = Graph()
        model, clip, vae = checkpoint(g, f"{kind}.safetensors")
        if strength:
            lora_file = {"lora_name": "prior.safetensors", "strength_model": strength}
            model = g.node("LoraLoaderModelOnly", model=model, **lora_file)[0]
        train_node(g, (model, clip, vae), image_batch(g, names), seed=19, steps=2, method="DreamBooth")
        run = new_run(host, lambda: host.run(g.prompt))
        # Out of the way: where both ways round alike, they are one run to the store, and the second would not train.
        return weights(run.rename(run.with_name(f"kept_{kind}_{strength}")), 2)

    wired, merged, plain = trained("sd15", 1.0), trained("merged", 0.0), trained("sd15", 0.0)
    assert closest(wired, merged) < 1e-5
    assert closest(wired, plain) > 1e-4


# ---- what is seen ------------------------------------------------------------------------------------------------


def test_what_the_browser_hears(host: Host, names: list[str]) -> None:
    often = {"preview_every": 6, "preview_steps": 2, "snapshot_every": 6}
    g, node = training_graph(names, setting=often, seed=26, steps=12)
    with host.events() as events, host.events() as another_page:
        prompt_id = host.queue(g.prompt, events.client_id)
        host.wait(prompt_id)
        events.wait_for("apt_train.finished")
        heard, pictures = list(events), events.pictures_of(node.id)
    assert not another_page.of("text"), "it would stand on whatever node has the same number there"
    ours = [event for event in heard if event.kind.startswith("apt_train.")]
    assert ours[0].kind == "apt_train.started" and ours[-1].kind == "apt_train.finished"
    assert {event.data["prompt_id"] for event in ours} == {prompt_id}
    assert {event.data["node"] for event in ours} == {node.id}
    points = [point for event in ours if event.kind == "apt_train.steps" for point in event.data["points"]]
    assert [point["step"] for point in points] == list(range(1, 13))
    assert ours[-1].data["state"] == "done" and ours[-1].data["step"] == 12
    lines = [event.data["text"] for event in heard if event.kind == "text"]
    (end,) = {line for line in lines if line.startswith("step 12 of 12 · loss ")}
    assert "gamma" in end and "drift ratio" in end
    assert not any("drift ratio" in line for line in lines if line.startswith(("step 1 ", "step 2 ", "step 5 ")))
    assert any(" left" in line for line in lines)
    assert pictures and pictures[-1].width > pictures[0].width  # samples have joined the heat map
    bars = [event.data["nodes"][node.id]["value"] for event in heard if event.kind == "progress_state"
            if node.id in event.data["nodes"]]  # fmt: skip
    assert bars == sorted(bars) and bars[-1] == 12


def test_the_line_says_what_goes_on_beside_the_steps_and_counts_the_notices(host: Host, names: list[str]) -> None:
    setting = {"preview_every": 2, "preview_steps": 2, "snapshot_every": 2, "identifier_mode": "learned"}
    g, node = training_graph([names[0], names[0]], setting=setting, seed=36, steps=2)
    with host.events() as events:
        run = new_run(host, lambda: host.run(g.prompt, timeout=300, client_id=events.client_id))
        events.wait_for("apt_train.finished")
        lines = [event.data["text"] for event in events.of("text") if event.data["node"] == node.id]
    for words in ("reading the weights", "encoding pictures 1 of 2", "measuring the drift from the prior 1 of ",
                  "drawing previews 1 of ", "writing the report"):  # fmt: skip
        assert any(line.startswith(words) for line in lines), (words, lines)
    notices = [json.loads(line)["text"] for line in (run / "notices.jsonl").read_text().splitlines()]
    assert len(notices) == 2 and "no standard deviation" in notices[1], "the tiny VAE's own"
    assert "are the same picture" in notices[0] and set(notices) <= set(lines)
    steps = [line for line in lines if line.startswith("step ")]
    assert steps and all(line.endswith(" · 2 notices") for line in steps)
    words = lines[-1].split(" · ")
    assert words[:2] == ["done: 2 steps", "2 notices"] and words[2].startswith("prompts say embedding:")
    assert words[2].endswith(", not my_toy") and len(" · ".join(words[:3])) < SHOWN_LETTERS, "a long line is cut off"
    assert all(f"- {notice}" in (run / "report.md").read_text() for notice in notices)
    assert host.get(f"/apt_train/runs/{run.name}")["notices"] == notices


def test_reading_the_weights_is_told_piece_by_piece(host: Host, names: list[str]) -> None:
    """Which takes a minute on a checkpoint of gigabytes; here the first piece is all that there is time to say."""
    host.free()  # a model that was hashed is not hashed again while it lives
    time.sleep(0.5)
    g, node = training_graph(names, seed=71, steps=1)
    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        lines = [event.data["text"] for event in events.of("text") if event.data["node"] == node.id]
    assert lines[0] == "reading the weights" and re.fullmatch(r"reading the weights 1 of [0-9]{2,4}", lines[1])


def test_without_the_indicator_the_node_shows_the_loss(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, seed=29, method="DreamBooth")
    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        lines = [event.data["text"] for event in events.of("text")]
    assert lines and not any("gamma" in line for line in lines)


def test_alone_in_a_graph_it_runs_and_shows_its_tooltips(host: Host, names: list[str]) -> None:
    for node_type in ("APTTrain", "APTTrainOptions"):
        info = host.object_info(node_type)
        if node_type == "APTTrainOptions":
            assert info["deprecated"] and not info["search_aliases"]
            info = {**info, "search_aliases": ["none: it is not to be found"]}
        assert info["category"] == "training/APT" and info["description"] and info["search_aliases"]
        for group in ("required", "optional"):
            for name, (_, settings) in info["input"].get(group, {}).items():
                assert settings.get("tooltip"), (node_type, name)
        assert all(info["output_tooltips"])
    assert host.object_info("APTTrain")["output_node"]


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"subject": "../evil"}, "refused", "subject is '../evil'"),
        ({"class_word": " "}, "refused", "class_word is empty"),
        ({"captions": "a house\na garden"}, "failed", "does not mention the subject"),
        ({"captions": "one\ntwo\nthree"}, "failed", "The number of captions is 3, of images 2"),
        ({"resolution": 72}, "failed", "resolution"),
        ({"caption_template": "a photo"}, "refused", "write {subject}"),
    ],
)
def test_a_refusal_is_a_sentence_and_leaves_nothing(
    host: Host, names: list[str], changes: dict[str, Any], kind: str, words: str
) -> None:
    before = runs(host)
    g, node = training_graph(names, **{**SETTINGS, **changes})
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.kind == kind and caught.value.node == node.id
    assert words in str(caught.value) and str(caught.value).endswith(".")
    assert runs(host) == before


def test_masks_that_do_not_fit_are_refused(host: Host, names: list[str]) -> None:
    g, node = training_graph(names)
    mask = g.node("SolidMask", value=1.0, width=64, height=64)
    g.prompt[node.id]["inputs"]["masks"] = mask[0]
    with pytest.raises(HostError, match="number of masks is 1, of images 2"):
        host.run(g.prompt)

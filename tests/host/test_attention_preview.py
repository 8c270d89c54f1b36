"""APT Attention Align Preview on the real host: its maps are the host's own, and every input has its effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from .graphs import picture
from .server import Host, HostError
from .workflows import Graph, Node, checkpoint

NODE = "witness_node.py"
SAME = "model and tuned have the same weights"
PROMPT = "a photo of {subject} on the beach"
LABELS = ["<start>", "a", "photo", "of", "<subject>", "on", "the", "beach", "<end>", "<rest>"]
SETTINGS: Mapping[str, Any] = {
    "prompt": PROMPT, "trigger": "", "class_word": "toy", "noise_level": 0.5, "layers": "decoder", "tokens": "",
    "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def host(place: tuple[Path, str], folder: Path) -> Iterator[Host]:
    """With the witness among its nodes, LoRAs and embeddings."""
    for name in ("loras", "embeddings"):
        (folder / "models" / name).mkdir(parents=True)
    loras, decoder = folder / "models" / "loras", "lora_unet_output_blocks_{}_1_transformer_blocks_0_attn2_to_k"
    for kind, width in (("sd15", 768), ("sdxl", 2048)):
        strong_lora(loras / f"{kind}.safetensors", [decoder.format(block) for block in range(4)], width, 320)
    text = "lora_te_text_model_encoder_layers_0_mlp_fc2"
    strong_lora(loras / "text.safetensors", [text], 3072, 768)
    save_file({"nothing.weight": torch.zeros(1)}, loras / "nothing.safetensors")
    draw = torch.Generator().manual_seed(0)
    rows = {"clip_l": torch.randn(2, 768, generator=draw) / 2, "clip_g": torch.randn(2, 1280, generator=draw) / 2}
    save_file(rows, folder / "models" / "embeddings" / "my_toy.safetensors")
    save_file({"clip_l": torch.zeros(1, 1024)}, folder / "models" / "embeddings" / "wide.safetensors")
    save_file({"clip_l": rows["clip_l"]}, folder / "models" / "embeddings" / "small.safetensors")
    with Host(folder, *place) as running:
        yield running


def strong_lora(path: Path, modules: list[str], inputs: int, outputs: int) -> None:
    """Random, on these modules under kohya's names."""
    lora, draw = {}, torch.Generator().manual_seed(0)
    for module in modules:
        lora[f"{module}.lora_down.weight"] = torch.randn(4, inputs, generator=draw) / 8
        lora[f"{module}.lora_up.weight"] = torch.randn(outputs, 4, generator=draw) / 8
        lora[f"{module}.alpha"] = torch.tensor(4.0)
    save_file(lora, path)


@dataclass(frozen=True)
class Seen:
    """What the node showed: its picture, score and table (its lines, and by token the numbers of a row)."""

    image: Image.Image
    alignment: float
    table: str

    @property
    def rows(self) -> dict[str, list[float]]:
        lines = self.table.split("\n\n")[1].split("\n")[1:]
        parts = [line.rsplit(maxsplit=4) for line in lines]
        return {label: [float(cell.rstrip("%")) if cell != "-" else 0.0 for cell in rest] for label, *rest in parts}


@dataclass(frozen=True)
class Preview:
    """The node in a graph, with what reads its score and its table."""

    node: Node
    score: Node
    table: Node

    def seen(self, host: Host, outputs: Mapping[str, Any]) -> Seen:
        (entry,) = outputs[self.node.id]["images"]
        score, table = (outputs[node.id]["text"][0] for node in (self.score, self.table))
        image = host.image(entry)
        assert outputs[self.node.id]["sheet_size"] == list(image.size)  # the editor makes the node fit
        return Seen(image, float(score), table)


def preview(g: Graph, model: Any, tuned: Any, clip: Any, **inputs: Any) -> Preview:
    """`latent`: a wire, or the size of an empty one (64 x 64 where it is not given), or None."""
    if isinstance(size := inputs.setdefault("latent", (64, 64)), tuple):
        inputs["latent"] = g.node("EmptyLatentImage", width=size[0], height=size[1], batch_size=1)[0]
    given = {name: value for name, value in {**SETTINGS, **inputs}.items() if value is not None}
    node = g.node("APTAttentionAlignPreview", model=model, tuned=tuned, clip=clip, **given)
    return Preview(node, g.node("PreviewAny", source=node[1]), g.node("PreviewAny", source=node[2]))


def look_at(host: Host, *variants: Mapping[str, Any], lora: bool = True) -> list[Seen]:
    """SD1.5 against itself, with the strong LoRA on or not, once for each set of inputs: one prompt."""
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    tuned = lora_on(g, model, "sd15") if lora else model
    previews = [preview(g, model, tuned, clip, **inputs) for inputs in variants]
    outputs = host.run(g.prompt).outputs
    return [one.seen(host, outputs) for one in previews]


def lora_on(g: Graph, model: Any, kind: str) -> Any:
    return g.node("LoraLoaderModelOnly", model=model, lora_name=f"{kind[:4]}.safetensors", strength_model=1.0)[0]


# --- what is shown is what the host does --------------------------------------------------------------------------


def witness(g: Graph, model: Any, clip: Any, text: str, columns: list[int]) -> Node:
    latent = g.node("EmptyLatentImage", width=96, height=64, batch_size=1)[0]
    inputs = {"latent": latent, "text": text, "columns": json.dumps(columns), "noise_level": 0.5, "seed": 0}
    return g.node("AptWitness", model=model, clip=clip, **inputs)


@dataclass(frozen=True)
class Shown:
    itself: Seen
    moved: Seen
    witnesses: list[dict[str, Any]]  # of the prior and of the tuned model, columns counted by hand


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sdxl_v"])
def shown(host: Host, request: pytest.FixtureRequest) -> Shown:
    """One prompt for each kind: a model against itself, and against itself with a LoRA and a trigger of two tokens."""
    g = Graph()
    model, clip, _ = checkpoint(g, f"{request.param}.safetensors")
    tuned = lora_on(g, model, request.param)
    itself = preview(g, model, model, clip, latent=(96, 64))
    moved = preview(g, model, tuned, clip, latent=(96, 64), trigger="embedding:my_toy")
    texts = [PROMPT.replace("{subject}", name) for name in ("toy", "embedding:my_toy")]
    prior = witness(g, model, clip, texts[0], [0, 1, 2, 3, 4, 5, 6, 7, 8, *[9] * 68])
    after = witness(g, tuned, clip, texts[1], [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, *[9] * 67])
    outputs = host.run(g.prompt, timeout=300).outputs
    found = [json.loads(outputs[node.id]["text"][0]) for node in (prior, after)]
    return Shown(itself.seen(host, outputs), moved.seen(host, outputs), found)


def test_maps_are_the_hosts_own(shown: Shown) -> None:
    """Against hooks on the UNet's projections, map by map; and the table's means."""
    table = shown.moved.rows
    assert list(table) == LABELS
    for number, found in enumerate(shown.witnesses):
        assert found["layers"] == [4, 4]
        assert found["difference"] < 1e-5 and found["rows"] < 1e-5, found
        assert [row[number] / 100 for row in table.values()] == pytest.approx(found["means"], abs=1e-4)


def test_a_model_is_aligned_with_itself(shown: Shown) -> None:
    """Exactly: the score is 1, and no tile of differences has a colour."""
    seen = shown.itself
    assert seen.alignment == 1
    assert [row[2] for row in seen.rows.values()] == [0] * len(LABELS)
    assert "both read: a photo of toy on the beach" in seen.table and SAME in seen.table
    blank = (np.asarray(seen.image) == 247).all(axis=-1).sum()
    assert blank == len(LABELS) * 112 * 75, "the tiles of difference have the colour of none, and nothing else has"


def test_wires_that_were_swapped_are_told(host: Host) -> None:
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    swapped = preview(g, lora_on(g, model, "sd15"), model, clip)
    assert "they may be swapped" in swapped.seen(host, host.run(g.prompt).outputs).table


def test_a_lora_moves_attention(shown: Shown) -> None:
    seen = shown.moved
    assert SAME not in seen.table and "swapped" not in seen.table
    assert 0.2 < seen.alignment < 0.99
    assert seen.table.startswith(f"alignment {seen.alignment:.4f}")
    columns = list(zip(*seen.rows.values(), strict=True))
    assert [sum(column) for column in columns] == pytest.approx([100, 100, 0, 100], abs=0.6)


def test_another_nodes_attention_stays_in_its_place(host: Host) -> None:
    """What replaced the cross-attention goes on doing so, while it is listened to."""
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    replaced = g.node("AptWitnessReplaced", model=model)[0]
    found = witness(g, replaced, clip, "a toy", [0, 1, 2, 3, *[4] * 73])
    against = preview(g, model, replaced, clip)
    outputs = host.run(g.prompt).outputs
    assert json.loads(outputs[found.id]["text"][0])["difference"] < 1e-5
    assert against.seen(host, outputs).alignment < 1


def test_a_lora_wire_a_lora_on_the_model_and_a_bypassed_one_look_alike(host: Host) -> None:
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    wire = g.node("AptWitnessLora", name="sd15.safetensors")[0]
    patched, bypassed = (
        g.node("LoraModelLoader", model=model, lora=wire, strength_model=1.0, bypass=way)[0] for way in (False, True)
    )
    previews = [preview(g, model, tuned, clip) for tuned in (lora_on(g, model, "sd15"), wire, patched, bypassed)]
    outputs = host.run(g.prompt).outputs
    scores = [one.seen(host, outputs).alignment for one in previews]
    assert scores[0] < 0.9 and scores == pytest.approx([scores[0]] * 4, abs=1e-3)


def test_guidance_of_other_nodes_is_left_out(host: Host) -> None:
    """It would evaluate the model again, with other attention."""
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    tuned = lora_on(g, model, "sd15")
    guided = g.node("PerturbedAttentionGuidance", model=tuned, scale=3.0)[0]
    previews = [preview(g, model, one, clip) for one in (tuned, guided)]
    outputs = host.run(g.prompt).outputs
    first, second = (one.seen(host, outputs).table for one in previews)
    assert first == second


# --- what each input does -----------------------------------------------------------------------------------------


def test_noise_level_layers_and_seed_change_what_is_seen(host: Host) -> None:
    changes = [{"noise_level": 0.1}, {"layers": "middle + decoder"}, {"layers": "all"}, {"seed": 1}]
    plain, *others = look_at(host, {}, *changes)
    assert [change for change, seen in zip(changes, others, strict=True) if seen.rows == plain.rows] == []
    assert [seen.table.count(f"{n} layers") for seen, n in ((plain, 4), (others[1], 5), (others[2], 7))] == [1, 1, 1]
    assert look_at(host, {"noise_level": 0.5004})[0].rows == plain.rows  # the same timestep, drawn again


def test_chosen_tokens_alone_are_shown_and_the_score_stays(host: Host) -> None:
    wanted = {"prompt": "a {subject} in wonderlandia", "tokens": "wonderlandia"}
    plain, some, word = look_at(host, {}, {"tokens": "beach, {subject}"}, wanted)
    assert list(some.rows) == ["<subject>", "beach"]
    assert some.alignment == plain.alignment
    assert some.image.width < plain.image.width and some.image.height < plain.image.height
    assert list(word.rows) == ["wonderlandia 1/2", "wonderlandia 2/2"]


def test_a_picture_and_its_latent_look_alike(host: Host) -> None:
    """And the picture stands beside the tiles; a larger one than the model's own size is shrunk to it."""
    host.upload("look.png", picture(3, 64, 64))
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    image = g.node("LoadImage", image="look.png")[0]
    tuned = lora_on(g, model, "sd15")
    latent = g.node("VAEEncode", pixels=image, vae=vae)[0]
    previews = [
        preview(g, model, tuned, clip, image=image, vae=vae, latent=None),
        preview(g, model, tuned, clip, latent=latent),
        preview(g, model, tuned, clip),
    ]
    outputs = host.run(g.prompt).outputs
    by_image, by_latent, by_noise = (one.seen(host, outputs) for one in previews)
    assert by_image.rows == by_latent.rows != by_noise.rows
    assert "plain noise" in by_noise.table and "plain noise" not in by_latent.table
    mean = np.asarray(picture(3)).mean(axis=(0, 1))
    assert tile_means(by_image.image, (112, 112), mean) and not tile_means(by_latent.image, (112, 112), mean)


def tile_means(sheet: Image.Image, size: tuple[int, int], colour: Any) -> bool:
    """Whether the sheet's first tile, right of the labels, has this mean colour."""
    pixels = np.asarray(sheet.convert("RGB")).astype(float)
    inked = np.argwhere((pixels != 255).any(axis=-1) & (np.ptp(pixels, axis=-1) > 60))
    top, left = inked[:, 0].min(), inked[:, 1].min()
    return bool(np.abs(pixels[top : top + size[1], left : left + size[0]].mean(axis=(0, 1)) - colour).max() < 8)


@pytest.mark.slow
def test_without_a_picture_both_look_at_plain_noise_of_the_models_size(host: Host) -> None:
    (seen,) = look_at(host, {"latent": None, "tokens": "beach"})
    assert "on plain noise" in seen.table and seen.alignment < 1


@pytest.mark.slow
def test_a_large_picture_is_shrunk_to_the_models_size(host: Host) -> None:
    host.upload("large.png", picture(3, 1536, 768))
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    image = g.node("LoadImage", image="large.png")[0]
    shrunk = g.node("ImageScale", image=image, width=728, height=360, upscale_method="area", crop="disabled")[0]
    previews = [preview(g, model, model, clip, image=wire, vae=vae, latent=None) for wire in (image, shrunk)]
    outputs = host.run(g.prompt, timeout=300).outputs
    large, small = (one.seen(host, outputs) for one in previews)
    assert large.rows == small.rows


def test_who_reads_what(host: Host) -> None:
    """A run fills trigger and class word where they are empty; without `{subject}` both models read the same."""
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    run = g.node("AptWitnessRun", trigger="embedding:my_toy", class_word="bear")[0]
    previews = [
        preview(g, model, model, clip, run=run, class_word=""),
        preview(g, model, model, clip, run=run, trigger="sks", class_word="toy"),
        preview(g, model, model, clip, prompt="a red car", class_word=""),
    ]
    outputs = host.run(g.prompt).outputs
    filled, explicit, plain = (one.seen(host, outputs) for one in previews)
    texts = ["prior reads: a photo of bear on the beach", "tuned reads: a photo of embedding:my_toy on the beach"]
    assert filled.table.split("\n")[1:3] == texts and filled.alignment < 1
    assert "reads: a photo of toy on" in explicit.table and "reads: a photo of sks on" in explicit.table
    assert "both read: a red car" in plain.table and plain.alignment == 1
    assert list(plain.rows) == ["<start>", "a", "red", "car", "<end>", "<rest>"]


def test_prompts_longer_than_a_chunk(host: Host) -> None:
    """75 tokens with the class word, 76 with the embedding: one chunk for the prior, two for the tuned model."""
    words = " ".join(["red", "blue", "green", "white", "black"] * 14)
    (seen,) = look_at(host, {"prompt": f"{words} on a hot {{subject}} day", "trigger": "embedding:my_toy"})
    assert len(seen.rows) < 75 and 0 < seen.alignment < 1
    assert sum(row[1] for row in seen.rows.values()) > 50


def test_the_tuned_text_encoder_reads_the_tuned_text(host: Host) -> None:
    """From a wire of its own, or from a LORA_MODEL that holds something for it."""
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    names = {"lora_name": "text.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    tuned_clip = g.node("LoraLoader", model=model, clip=clip, **names)[1]
    wire = g.node("AptWitnessLora", name="text.safetensors")[0]
    previews = [
        preview(g, model, model, clip, tuned_clip=clip), preview(g, model, model, clip, tuned_clip=tuned_clip),
        preview(g, model, wire, clip), preview(g, model, wire, clip, tuned_clip=clip),
    ]  # fmt: skip
    outputs = host.run(g.prompt).outputs
    same, wired, by_lora, overruled = (one.seen(host, outputs).alignment for one in previews)
    assert same == overruled == 1 and wired == by_lora < 0.999
    assert [SAME in one.seen(host, outputs).table for one in previews] == [True, False, False, False]


# --- what cannot be looked at -------------------------------------------------------------------------------------


def refused(host: Host, build: Any, inputs: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The sentence at the node: what its own widgets tell before anything runs, the rest once it does."""
    g = Graph()
    wires = build(g)
    with pytest.raises(HostError) as refusal:
        preview(g, *wires, **inputs)
        host.run(g.prompt)
    assert refusal.value.kind in ("refused", "failed") and refusal.value.node_type == "APTAttentionAlignPreview"
    return refusal.value.sentence


def same(g: Graph, model: str = "sd15", tuned: str = "sd15", clip: str = "sd15") -> list[Any]:
    return [checkpoint(g, f"{name}.safetensors")[i] for i, name in ((0, model), (0, tuned), (1, clip))]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"class_word": ""}, "wire run, fill in trigger and class_word"),
        ({"trigger": "embedding:nowhere"}, "There is no embedding 'nowhere'"),
        ({"trigger": "embedding:wide"}, "The embedding 'wide' is 1024 wide, where this CLIP reads 768"),
        ({"prompt": "{subject}land"}, "inside a longer word"),
        ({"tokens": "beech"}, "tokens names 'beech'"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_in_a_sentence(host: Host, inputs: dict[str, Any], says: str) -> None:
    sentence = refused(host, same, inputs)
    assert says in sentence and sentence.endswith(".") and "\n" not in sentence


def test_wires_that_do_not_belong_together_are_refused(host: Host) -> None:
    def flux(g: Graph) -> list[Any]:
        model = g.node("AptWitnessFlux")[0]
        return [model, model, same(g)[2]]

    def foreign_lora(g: Graph) -> list[Any]:
        model, _, clip = same(g)
        return [model, g.node("AptWitnessLora", name="nothing.safetensors")[0], clip]

    def twice(g: Graph) -> list[Any]:
        model, _, clip = same(g)
        return [lora_on(g, model, "sd15"), g.node("AptWitnessLora", name="sd15.safetensors")[0], clip]

    assert refused(host, twice).startswith("The MODEL carries this LoRA already, so it would act twice")
    assert refused(host, flux).startswith("The model is a Flux, which has no cross-attention")
    assert refused(host, lambda g: same(g, tuned="sdxl")).startswith("The model is a SD15 and tuned a KOALA")
    wide = refused(host, lambda g: same(g, clip="sdxl"))
    assert wide.startswith("The CLIP gives texts 2048 wide, the SD15 reads 768")
    assert refused(host, foreign_lora).startswith("The LoRA on tuned fits no layer of the model")
    small = refused(host, lambda g: same(g, "sdxl", "sdxl", "sdxl"), {"trigger": "embedding:small"})
    assert small.startswith("The embedding 'small' is 768 wide, where this CLIP reads 1280")


@pytest.mark.parametrize(
    ("wires", "says"),
    [
        (["image"], "image needs a VAE"),
        (["image", "vae"], "The VAE is one of SDXL (from sdxl.safetensors), but the MODEL is one of SD1.5"),
        (["image", "latent"], "image and latent are both wired"),
        (["many"], "The latent has the shape (1, 16, 8, 8), the model reads 4 channels"),
    ],
)
def test_pictures_that_cannot_be_looked_at_are_refused(host: Host, wires: list[str], says: str) -> None:
    host.upload("look.png", picture(3, 64, 64))
    inputs: dict[str, Any] = {"latent": None}

    def build(g: Graph) -> list[Any]:
        size = {"width": 64, "height": 64, "batch_size": 1}
        if "image" in wires:
            inputs["image"] = g.node("LoadImage", image="look.png")[0]
        if "vae" in wires:
            inputs["vae"] = checkpoint(g, "sdxl.safetensors")[2]
        if set(wires) & {"latent", "many"}:
            inputs["latent"] = g.node("EmptySD3LatentImage" if "many" in wires else "EmptyLatentImage", **size)[0]
        return same(g)

    assert says in refused(host, build, inputs)


def test_every_input_and_output_says_what_it_is(host: Host) -> None:
    info = host.object_info("APTAttentionAlignPreview")
    inputs = {**info["input"]["required"], **info["input"]["optional"]}
    order = ["model", "tuned", "clip", "prompt", "trigger", "class_word", "noise_level", "layers", "tokens", "seed"]
    assert info["input_order"]["required"] == order and info["input"]["required"]["trigger"][1]["default"] == ""
    assert len(inputs) == 16 and all(len(spec[1]["tooltip"]) > 20 for spec in inputs.values())
    assert info["output_name"] == ["tiles", "alignment", "table"] and all(info["output_tooltips"])
    assert inputs["tuned"][0] == "MODEL,LORA_MODEL" and info["output_node"]

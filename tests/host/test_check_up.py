"""APT LoRA Check-up on the real host: LoRAs of APT Train, of the host's trainer and of others, merged as it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from .graphs import LORA, MODEL, RUN, image_batch, training_graph, untouched, upload_pictures
from .server import Host, HostError
from .trained import shown_text
from .workflows import Graph, Node, checkpoint

NODE = "merged_node.py"
SHEET, VERDICT, STRENGTH, NUMBERS = range(4)
NOTHING: dict[str, list[str]] = {"no_place": [], "unfit": [], "broken": [], "unread": []}
QUICK: Mapping[str, Any] = {
    "resolution": 64, "draws": 1, "sample_steps": 0, "class_word": "toy", "trigger": "sks toy", "strengths": "1.0",
    "unrelated": "a city on grass",
}  # fmt: skip


@pytest.fixture(scope="module")
def host(place: tuple[Path, str], folder: Path) -> Iterator[Host]:
    """With LoRAs of other trainers among its files."""
    loras = folder / "models" / "loras"
    loras.mkdir(parents=True)
    for name, tensors in strangers().items():
        save_file(tensors, loras / f"{name}.safetensors")
    with Host(folder, *place) as running:
        yield running


def strangers() -> dict[str, dict[str, torch.Tensor]]:
    """Kinds and names that APT Train does not write, on the tiny SD1.5 of the tests."""
    attention = "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_k"
    conv = "lora_unet_middle_block_0_in_layers_2"
    text = "lora_te_text_model_encoder_layers_0_mlp_fc2"
    layers = {attention: (320, 768), conv: (320, 320, 3, 3), text: (768, 3072)}
    locon: dict[str, torch.Tensor] = {}
    for name, (rows, columns, *kernel) in layers.items():
        locon[f"{name}.lora_down.weight"] = noise(4, columns, *kernel)
        locon[f"{name}.lora_up.weight"] = noise(rows, 4, *[1] * len(kernel))
        locon[f"{name}.alpha"] = torch.tensor(2.0)
    dora = {key: tensor for key, tensor in locon.items() if key.startswith(attention)}
    dora[f"{attention}.dora_scale"] = noise(1, 768).abs() * 20
    loha = {
        f"{attention}.hada_w{n}_{end}": noise(*shape)
        for n in (1, 2)
        for end, shape in (("a", (320, 4)), ("b", (4, 768)))
    }
    lokr = {
        f"{attention}.lokr_w1": noise(8, 8),
        f"{attention}.lokr_w2_a": noise(40, 4),
        f"{attention}.lokr_w2_b": noise(4, 96),
    }
    alpha = {f"{attention}.alpha": torch.tensor(3.0)}
    peft = {
        f"unet.up_blocks.0.attentions.{n}.transformer_blocks.0.attn2.{layer}.lora_{end}.weight": noise(*shape)
        for n in (0, 1) for layer, width in (("to_k", 768), ("to_out.0", 320))
        for end, shape in (("A", (4, width)), ("B", (320, 4)))
    }  # fmt: skip
    half = {key: tensor for key, tensor in locon.items() if key != f"{conv}.lora_down.weight"}
    return {"locon": locon, "dora": dora, "loha": loha | alpha, "lokr": lokr | alpha, "peft": peft, "half": half}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / 8


def check_up(g: Graph, wires: tuple[Any, Any, Any], **inputs: Any) -> tuple[Node, list[Node]]:
    """The node as it is new but for these inputs, and what shows its texts and its strength."""
    model, clip, vae = wires
    node = g.node(
        "APTLoRACheckUp", model=model, clip=clip, vae=vae, **{**untouched("APTLoRACheckUp"), **QUICK, **inputs}
    )
    return node, [g.node("PreviewAny", source=node[output]) for output in (VERDICT, STRENGTH, NUMBERS)]


def looked_over(host: Host, name: str, **inputs: Any) -> tuple[dict[str, Any], str]:
    """The numbers and the verdict of a file."""
    g = Graph()
    _, shown = check_up(g, checkpoint(g, "sd15.safetensors"), lora_name=f"{name}.safetensors", **inputs)
    result = host.run(g.prompt, timeout=300)
    return json.loads(shown_text(result, shown[2])), shown_text(result, shown[0])


# ---- from training to its check-up -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["word", "learned"])
def test_a_lora_that_was_trained_in_the_same_graph(host: Host, mode: str) -> None:
    names = upload_pictures(host)
    g, trained = training_graph(names, setting={"identifier_mode": mode}, learning_rate=1e-2)
    images = image_batch(g, names)
    more = {"class_word": "", "trigger": "", "images": images, "run": trained[RUN], "lora": trained[LORA]}
    more["sample_steps"] = 1
    node, shown = check_up(g, checkpoint(g, "sd15.safetensors"), **more)
    wired = g.node("PreviewImage", images=node[SHEET])
    result = host.run(g.prompt, timeout=600)
    verdict, strength, numbers = (shown_text(result, text) for text in shown)
    found = json.loads(numbers)
    assert verdict.startswith(f"Use it at strength {found['strength']:g}.") and float(strength) == found["strength"]
    assert found["class_word"] == "toy" and found["trigger"].startswith("embedding:" if mode == "learned" else "my_toy")
    assert found["pictures"] == 2 and found["file"]["left_out"] == NOTHING
    assert all(point["gain"] and point["subject"] > 0 for point in found["strengths"])
    sheet, passed_on = (host.image(result.outputs[one.id]["images"][0]) for one in (node, wired))
    assert np.array_equal(np.asarray(sheet), np.asarray(passed_on))
    assert sheet.width == 1400 and len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100
    assert result.outputs[node.id]["text"] == [verdict]
    assert node.id in host.run(g.prompt).cached, "looked over once"


def test_a_lora_of_the_hosts_own_trainer_saved_and_chosen_by_name(host: Host) -> None:
    (name,) = upload_pictures(host, count=1)
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    latents = g.node("VAEEncode", pixels=g.node("LoadImage", image=name)[0], vae=vae)
    text = g.node("CLIPTextEncode", text="a photo of a toy", clip=clip)
    trainer = g.node(
        "TrainLoraNode", model=model, latents=latents[0], positive=text[0], batch_size=1, grad_accumulation_steps=1,
        steps=3, learning_rate=0.01, rank=4, optimizer="AdamW", loss_function="MSE", seed=0, training_dtype="fp32",
        lora_dtype="fp32", quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False,
        checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )  # fmt: skip
    g.node("SaveLoRA", lora=trainer[0], prefix="loras/of_the_host")
    host.run(g.prompt, timeout=300)
    found, _ = looked_over(host, "of_the_host_00001_", trigger="")
    assert found["file"]["layers"] > 50 and found["file"]["left_out"] == NOTHING
    assert found["trigger"] == "toy" and found["strengths"][-1]["subject"] > 0
    assert merged(host, "of_the_host_00001_")["parts"][0]["apart"] < 1e-4


# ---- files of others ---------------------------------------------------------------------------------------------


def merged(host: Host, name: str) -> dict[str, Any]:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    node = g.node("AptMerged", model=model, clip=clip, vae=vae, lora_name=f"{name}.safetensors", strength=0.7)
    shown = g.node("PreviewAny", source=node[0])
    return json.loads(shown_text(host.run(g.prompt, timeout=200), shown))


@pytest.mark.parametrize(("name", "kind"), [("locon", "LoRA"), ("dora", "DoRA"), ("loha", "LoHa"), ("lokr", "LoKr")])
def test_a_file_is_merged_as_the_host_merges_it(host: Host, name: str, kind: str) -> None:
    found = merged(host, name)
    assert found["kinds"] == [kind] and found["left"] == [] and found["taken"] == found["placed"]
    assert sum(part["changed"] for part in found["parts"]) == found["placed"]
    unet, *encoders = (part["apart"] for part in found["parts"])
    assert unet < 1e-4 and max(encoders) < 1e-3, "the host keeps its text encoders in half precision"


def test_what_the_hosts_loader_leaves_out_is_said(host: Host) -> None:
    """It reads peft's names of some layers alone, and does not say so."""
    assert merged(host, "peft")["taken"] < 4
    _, verdict = looked_over(host, "peft")
    assert re.search(r"ComfyUI's own loader does not take all layers measured here \([0-3] of 4\)", verdict)


def test_a_lora_that_the_hosts_loader_fails_on_is_looked_over_all_the_same(host: Host) -> None:
    found, verdict = looked_over(host, "half")
    assert "ComfyUI's own loader fails on this LoRA" in verdict and len(found["file"]["left_out"]["unread"]) == 2


def test_a_lora_on_the_text_encoder_and_convolutions_is_looked_over(host: Host) -> None:
    found, verdict = looked_over(host, "locon")
    assert {block["name"] for block in found["blocks"]} == {"text encoder 1", "middle", "up 0"}
    assert "It changes the text encoder too" in verdict and "Without the training pictures" in verdict
    assert all(point["gain"] is None and point["unrelated"] > 0 for point in found["strengths"])


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_the_node_as_the_editor_makes_it_asks_for_a_lora(host: Host) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    node = g.node("APTLoRACheckUp", model=model, clip=clip, vae=vae, **untouched("APTLoRACheckUp"))
    with pytest.raises(HostError, match="No LoRA is given: wire one into lora") as caught:
        host.queue(g.prompt)
    assert caught.value.node == node.id


@pytest.mark.parametrize(
    ("inputs", "kind", "sentence"),
    [
        ({"class_word": "", "trigger": ""}, "sd15", "class_word is empty and the LoRA does not say it"),
        ({"trigger": "embedding:nowhere"}, "sd15", "that learned word was not found"),
        ({}, "sdxl", "is made for SD1.5: too few of its layers fit sdxl.safetensors"),
    ],
)
def test_what_cannot_be_looked_over_is_one_sentence(
    host: Host, inputs: dict[str, Any], kind: str, sentence: str
) -> None:
    g = Graph()
    check_up(g, checkpoint(g, f"{kind}.safetensors"), lora_name="peft.safetensors", **inputs)
    with pytest.raises(HostError, match="failed") as caught:
        host.run(g.prompt, timeout=200)
    assert sentence in caught.value.sentence and "\n" not in caught.value.sentence


def test_a_model_that_has_the_lora_on_already_is_refused(host: Host) -> None:
    """What it changes would be measured against itself."""
    g, trained = training_graph(upload_pictures(host), steps=1, learning_rate=1e-2)
    _, clip, vae = checkpoint(g, "sd15.safetensors")
    node, _ = check_up(g, (trained[MODEL], clip, vae), lora=trained[LORA], run=trained[RUN], lora_name="none")
    with pytest.raises(HostError) as caught:
        host.run(g.prompt, timeout=200)
    assert caught.value.node == node.id
    assert caught.value.sentence.startswith("The MODEL carries this LoRA already, so it would act twice")


def test_cancel_is_heard_and_leaves_nothing_behind(host: Host) -> None:
    g = Graph()
    check_up(g, checkpoint(g, "sd15.safetensors"), lora_name="loha.safetensors", draws=64, seed=5)
    with host.events() as events:
        prompt = host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: event.kind == "progress" and event.data.get("value", 0) > 3, 120)
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(prompt)
    assert looked_over(host, "loha")[0]["strength"] > 0

"""What the trainer sees of the host's wires is what the host computes: UNet, text, VAE, schedule, LoRAs baked in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .server import Host, HostError
from .workflows import Graph, checkpoint

NODE = "probe_node.py"
PROMPT = "a photo of a red toy, on the grass"
Wires = tuple[Any, Any, Any]


def probe(host: Host, g: Graph, wires: Wires, prompt: str = PROMPT) -> dict[str, Any]:
    model, clip, vae = wires
    node = g.node("AptProbe", model=model, clip=clip, vae=vae, prompt=prompt)
    return json.loads(host.run(g.prompt, timeout=300).outputs[node.id]["text"][0])


def assert_same(found: dict[str, Any]) -> None:
    for part in ("unet", "text", "pooled", "vae", "decode", "schedule"):
        assert found.get(part, 0) < 1e-4, (part, found)


def random_lora(path: Path, count: int = 6) -> None:
    """A strong LoRA on some cross-attention queries of an SD1.5 file, under kohya's names."""
    lora: dict[str, torch.Tensor] = {}
    draw = torch.Generator().manual_seed(0)
    for i in range(count):
        name = ["down_blocks_0_attentions_0", "mid_block_attentions_0", "up_blocks_0_attentions_0"][i % 3]
        module = f"lora_unet_{name}_transformer_blocks_0_attn{1 + i // 3}_to_q"
        lora[f"{module}.lora_down.weight"] = torch.randn(4, 320, generator=draw)
        lora[f"{module}.lora_up.weight"] = torch.randn(320, 4, generator=draw) / 10
        lora[f"{module}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora, path)


@pytest.fixture
def lora(host: Host) -> str:
    random_lora(host.folder / "models" / "loras" / "strong.safetensors")
    return "strong.safetensors"


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl_v", "sd15_kl"])
def test_a_checkpoint(host: Host, kind: str) -> None:
    g = Graph()
    found = probe(host, g, checkpoint(g, f"{kind}.safetensors"))
    assert_same(found)
    assert (found["v"], found["zero_snr"]) == ((1, 1) if kind == "sdxl_v" else (0, 0))
    assert (found["std"] > 0) == (kind == "sd15_kl")


def test_a_lora_on_the_model_is_baked_in(host: Host, lora: str) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    plain = probe(host, g, (model, clip, vae))
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    patched = g.node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.8)[0]
    found = probe(host, g, (patched, clip, vae))
    assert_same(found)
    assert found["digest"] != plain["digest"]
    assert probe(host, g, (patched, clip, vae), prompt="another")["digest"] == found["digest"]


@pytest.mark.parametrize(("kind", "layer"), [("sd15", -1), ("sd15", -2), ("sd15", -5), ("sdxl", -4)])
def test_clip_skip_and_long_prompts(host: Host, kind: str, layer: int) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, f"{kind}.safetensors")
    clip = g.node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)[0]
    assert_same(probe(host, g, (model, clip, vae), prompt="a photo of many small things, " * 20))  # several chunks


def test_model_sampling_nodes(host: Host) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=True)[0]
    found = probe(host, g, (model, clip, vae))
    assert_same(found)
    assert (found["v"], found["zero_snr"]) == (1, 1)


def test_fp8_weights(host: Host, checkpoints: dict[str, Path]) -> None:
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(unet_of(checkpoints["sd15"]), folder / "unet.safetensors")
    g = Graph()
    _, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node("UNETLoader", unet_name="unet.safetensors", weight_dtype="fp8_e4m3fn")[0]
    assert_same(probe(host, g, (model, clip, vae)))


SPAN = {"start_percent": 0.0, "end_percent": 1.0}


@pytest.mark.parametrize(
    ("node", "widgets", "name"),
    [
        ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, "output_block_patch"),
        ("EasyCache", {"reuse_threshold": 0.2, "verbose": False, **SPAN}, "easycache"),
        ("CFGOverride", {"cfg": 2.0, **SPAN}, "a model wrapper"),
    ],
)
def test_patches_that_act_only_when_sampling_are_told(
    host: Host, node: str, widgets: dict[str, float], name: str
) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node(node, model=model, **widgets)[0]
    (note,) = probe(host, g, (model, clip, vae))["notes"]
    assert note.endswith(f"are left out of training: {name}.")


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sdxl", "sd15_kl")])
def test_a_vae_of_the_other_family_is_refused(host: Host, kind: str, other: str) -> None:
    """The usual autoencoders have one shape in both families: the loader's file tells them apart."""
    g = Graph()
    model, clip, _ = checkpoint(g, f"{kind}.safetensors")
    vae = checkpoint(g, f"{other}.safetensors")[2]
    assert f"(from {other}.safetensors)" in refusal(host, g, (model, clip, vae))


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sd15_kl"), ("sdxl", "sdxl_v")])
def test_a_vae_of_another_file_of_the_family_is_taken(host: Host, kind: str, other: str) -> None:
    g = Graph()
    model, clip, _ = checkpoint(g, f"{kind}.safetensors")
    assert_same(probe(host, g, (model, clip, checkpoint(g, f"{other}.safetensors")[2])))


@pytest.mark.parametrize("other", ["sdxl", "sd15_kl"])
def test_a_vae_file_of_its_own(host: Host, checkpoints: dict[str, Path], other: str) -> None:
    """The tiny autoencoder says whose it is; the usual one in a file of its own says nothing, and is taken."""
    folder = host.folder / "models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    start = "first_stage_model."
    tensors = {
        key[len(start) :]: value for key, value in load_file(checkpoints[other]).items() if key.startswith(start)
    }
    save_file(tensors, folder / f"vae_{other}.safetensors")
    g = Graph()
    model, clip, _ = checkpoint(g, "sd15.safetensors")
    vae = g.node("VAELoader", vae_name=f"vae_{other}.safetensors")[0]
    if other == "sdxl":
        assert "(from vae_sdxl.safetensors)" in refusal(host, g, (model, clip, vae))
    else:
        assert_same(probe(host, g, (model, clip, vae)))


def refusal(host: Host, g: Graph, wires: Wires) -> str:
    """What the user reads; one sentence or a few."""
    with pytest.raises(HostError) as caught:
        probe(host, g, wires)
    message = str(caught.value).removeprefix("failed: ")
    assert message.endswith(".") and len(message) < 300
    return message


def test_a_bypass_lora_is_refused(host: Host, lora: str) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    weights = g.node("LoraLoaderBypassModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]
    assert "bypass" in refusal(host, g, (weights, clip, vae))


def test_hooks_are_refused(host: Host, lora: str) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    hooks = g.node("CreateHookLoraModelOnly", lora_name=lora, strength_model=1.0)[0]
    hooked = g.node("SetClipHooks", clip=clip, hooks=hooks, apply_to_conds=True, schedule_clip=False)[0]
    assert "hooks" in refusal(host, g, (model, hooked, vae))


ENDS = {"sigma_max": 120.0, "sigma_min": 0.002}


@pytest.mark.parametrize(
    ("node", "settings", "says"),
    [
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}, "LCM"),
        ("ModelSamplingContinuousEDM", {"sampling": "eps", **ENDS}, "EPS over ModelSamplingContinuousEDM"),
        ("ModelSamplingContinuousV", {"sampling": "v_prediction", **ENDS}, "over ModelSamplingContinuousV"),
    ],
)
def test_another_sampling_is_refused(host: Host, node: str, settings: dict[str, Any], says: str) -> None:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node(node, model=model, **settings)[0]
    assert says in refusal(host, g, (model, clip, vae))


def test_wires_of_different_models_are_refused(host: Host) -> None:
    g = Graph()
    model, _, vae = checkpoint(g, "sdxl.safetensors")
    _, clip, _ = checkpoint(g, "sd15.safetensors")
    message = refusal(host, g, (model, clip, vae))
    assert "SD1ClipModel" in message and "clip_g" in message


@pytest.mark.parametrize(("channels", "kind"), [(9, "inpainting"), (8, "picture-editing")])
def test_other_unets_are_refused_by_name(host: Host, checkpoints: dict[str, Path], channels: int, kind: str) -> None:
    tensors = load_file(checkpoints["sd15"])
    first = "model.diffusion_model.input_blocks.0.0.weight"
    width, _, height, length = tensors[first].shape
    tensors[first] = torch.zeros(width, channels, height, length, dtype=tensors[first].dtype)
    save_file(tensors, host.folder / "models" / "checkpoints" / f"{kind}.safetensors")
    g = Graph()
    assert kind in refusal(host, g, checkpoint(g, f"{kind}.safetensors"))


# Just enough of a file for the host to know the model; the weights it lacks stay unset.
OTHER_FAMILIES: dict[str, dict[str, tuple[int, ...]]] = {
    "SD3": {
        "joint_blocks.0.context_block.attn.qkv.weight": (192, 64), "x_embedder.proj.weight": (64, 16, 2, 2),
        "final_layer.linear.weight": (64, 64), "y_embedder.mlp.0.weight": (64, 2048),
        "context_embedder.weight": (64, 4096), "pos_embed": (1, 64, 64),
    },
    "Flux": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64),
        "guidance_in.in_layer.weight": (3072, 256), "vector_in.in_layer.weight": (3072, 768),
    },
}  # fmt: skip


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_are_refused_by_name(host: Host, family: str) -> None:
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in OTHER_FAMILIES[family].items()}
    save_file(tensors, folder / f"{family}.safetensors")
    g = Graph()
    _, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node("UNETLoader", unet_name=f"{family}.safetensors", weight_dtype="default")[0]
    message = refusal(host, g, (model, clip, vae))
    assert family in message and "SDXL" in message


def test_quantised_weights_are_dequantised(host: Host, checkpoints: dict[str, Path]) -> None:
    """fp8 with a scale per layer, as the host's own quantised files hold it."""
    tensors = unet_of(checkpoints["sd15"])
    quantised = {name for name in tensors if name.endswith(("attn2.to_q.weight", "attn1.to_v.weight"))}
    for name in quantised:
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_scale"] = scale
        tensors[f"{stem}.comfy_quant"] = torch.tensor(
            list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8
        )
    save_file(tensors, host.folder / "models" / "diffusion_models" / "quantised.safetensors")
    g = Graph()
    _, clip, vae = checkpoint(g, "sd15.safetensors")
    model = g.node("UNETLoader", unet_name="quantised.safetensors", weight_dtype="default")[0]
    assert_same(probe(host, g, (model, clip, vae)))


def unet_of(path: Path) -> dict[str, torch.Tensor]:
    prefix = "model.diffusion_model."
    return {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}

"""What is no checkpoint to train on is refused in one sentence that names what it is and what to give instead."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from apt_train.errors import InputError
from apt_train.families.load import load_checkpoint
from tests.tiny_checkpoint import (
    single_file_tensors,
    tiny_modules,
    write_clip_vocabulary,
    write_diffusers_folder,
    write_safetensors,
)

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
BLOCK = {f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3), CONTEXT: torch.zeros(32, 768)}
TEXT = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(768)}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    return write_clip_vocabulary(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def sd15_tensors() -> dict[str, torch.Tensor]:
    return single_file_tensors(tiny_modules("sd15"))


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400
    assert path.name in message
    return message


# --- the file itself ----------------------------------------------------------------------------------------


def test_missing_path(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="no devices among the files")
def test_a_device_is_no_file(tmp_path):
    assert "is not a file: check the path" in refusal(Path("/dev/null"))


def test_zero_bytes(tmp_path):
    path = tmp_path / "m.safetensors"
    path.touch()
    assert "empty" in refusal(path)


@pytest.mark.parametrize("kept", [3, 8, 100, -1])
def test_cut_short(tmp_path, kept):
    path = write_safetensors(tmp_path / "m.safetensors", BLOCK)
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut short" in refusal(path)


@pytest.mark.parametrize("name", ["m.ckpt", "m.bin", "m.pt", "renamed.safetensors"])
@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_are_not_opened(tmp_path, name, zipped):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    if zipped:
        raw = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
    assert "pickle" in refusal(path)


def test_header_whose_length_looks_like_a_pickle(tmp_path):
    """A header of 0x0280 bytes begins with a pickle's first two bytes; it is a header all the same."""
    path = tmp_path / "m.safetensors"
    text = (
        json.dumps({"something.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode().ljust(0x280)
    )
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "something.weight" in refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\xef\xbb\xbf\r\n<html></html>", "web page"),
        (b'{"error":"Unauthorized"}', "is a text"),
        (b"\n\nAccess denied\n", "is a text"),
        (b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0", "GGUF"),
        (b"Rar!\x1a\x07\x01\0" + bytes(9), "no safetensors file"),
        (b"\x10\0\0\0\0\0\0\0this is no JSON.", "header is unreadable"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{"b":1}}   ', "header is unreadable"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "without any tensor"),
    ],
)
def test_other_content(tmp_path, content, expected):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert expected in refusal(path)


@pytest.mark.parametrize(("name", "expected"), [("m.gguf", "GGUF"), ("m.png", "not a .safetensors file")])
def test_other_suffix(tmp_path, name, expected):
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    assert expected in refusal(tmp_path / name)


# --- another model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA"),
        (["lora_unet_x.hada_w1_a"], "a LoRA"),
        (["lycoris_x.lokr_w1"], "a LoRA"),
        (["clip_l", "clip_g"], "a textual inversion"),
        (
            ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
            "a ControlNet",
        ),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"], "a FLUX"),
        ([f"{UNET}double_blocks.0.img_attn.qkv.weight"], "a FLUX"),
        (
            ["single_transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.add_q_proj.weight"],
            "a FLUX",
        ),
        ([f"{UNET}joint_blocks.0.context_block.attn.qkv.weight"], "an SD3"),
        (["transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"], "an SD3"),
        (["transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"], "a Qwen-"),
        ([f"{UNET}transformer_blocks.0.img_mlp.net.0.proj.weight"], "a Qwen-Image"),
        (["blocks.0.self_attn.q.weight", "blocks.0.cross_attn.k.weight", "patch_embedding.weight"], "a Wan"),
        ([f"{UNET}blocks.0.self_attn.q.weight"], "a Wan"),
        (["blocks.0.attn.qkv.weight", "y_embedder.y_embedding"], "a diffusion transformer (PixArt"),
        (["adaln_single.linear.weight", "transformer_blocks.0.attn1.to_q.weight"], "a diffusion transformer"),
        ([f"{UNET}transformer_blocks.0.attn1.to_q.weight"], "a diffusion transformer"),
        (["model.double_layers.0.attn.w1q.weight"], "a diffusion transformer"),
        (["layers.0.attention.qkv.weight", "cap_embedder.0.weight"], "a diffusion transformer"),
        ([f"{UNET}layers.0.attention.qkv.weight"], "a diffusion transformer"),
        ([f"{UNET}down_blocks.0.0.channelwise.0.weight"], "another architecture"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["first_stage_model.encoder.conv_in.weight"], "a VAE alone"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "a VAE alone"),
        (["taesd_encoder.0.weight"], "a VAE alone"),
        (["input_blocks.0.0.weight"], "a UNet alone"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a UNet alone"),
        (["diffusion_model.input_blocks.0.0.weight"], "a UNet alone"),
        (["unet.down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"], "a UNet alone"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder alone"),
        (["encoder.layers.0.self_attn.q_proj.weight", "final_layer_norm.weight"], "a text encoder alone"),
        (["encoder.layers.0.weight", "decoder.layers.0.weight"], "a VAE alone"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"], "a text encoder alone"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "no model known here"),
        (
            [
                "unet.down_blocks.0.resnets.0.conv1.weight",
                "vae.encoder.conv_in.weight",
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight",
            ],
            "a UNet, a VAE and a text encoder in an unknown layout",
        ),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder alone"),
        (["something.else"], "something.else"),
    ],
)
def test_other_models_are_named(tmp_path, names, expected):
    message = refusal(write_safetensors(tmp_path / "m.safetensors", {name: torch.zeros(8) for name in names}))
    assert expected in message and "SD1.5 or SDXL" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
            "an inpainting UNet of 9 input channels",
        ),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "picture-editing"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 7, 3, 3)}, "upscaler"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 5, 3, 3)}, "a UNet of 5 input channels"),
        ({CONTEXT: torch.zeros(32, 1280)}, "the SDXL refiner"),
        ({CONTEXT: torch.zeros(32, 1024)}, "SD2.x"),
        ({"edm_mean": torch.zeros(4)}, "EDM"),
        ({f"{UNET}input_blocks.1.0.time_stack.in_layers.2.weight": torch.zeros(4)}, "a video model"),
    ],
)
def test_relatives_with_another_input_are_named(tmp_path, change, expected):
    assert expected in refusal(write_safetensors(tmp_path / "m.safetensors", {**BLOCK, **TEXT, **change}))


# --- parts missing or damaged -------------------------------------------------------------------------------


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}


def test_file_without_text_encoder_or_vae(tmp_path, sd15_tensors, vocabulary):
    path = tmp_path / "m.safetensors"
    bare = write_safetensors(path, without(without(sd15_tensors, "cond_stage"), "first_stage"))
    assert "a UNet alone" in refusal(bare, tokenizer=vocabulary)
    assert "without text encoder" in refusal(
        write_safetensors(path, without(sd15_tensors, "cond_stage")), tokenizer=vocabulary
    )
    assert "holds no VAE" in refusal(
        write_safetensors(path, without(sd15_tensors, "first_stage")), tokenizer=vocabulary
    )


def test_sdxl_file_without_its_second_encoder(tmp_path, vocabulary):
    tensors = without(single_file_tensors(tiny_modules("koala")), "conditioner.embedders.1.")
    message = refusal(write_safetensors(tmp_path / "m.safetensors", tensors), tokenizer=vocabulary)
    assert "no text encoder under conditioner.embedders.1" in message


@pytest.mark.parametrize("part", ["UNet", "VAE", "text encoder"])
def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path, sd15_tensors, vocabulary, part):
    prefix, name = {
        "UNet": (UNET, "out.2.bias"),
        "VAE": ("first_stage_model.", "decoder.conv_out.bias"),
        "text encoder": ("cond_stage_model.transformer.text_model.", "final_layer_norm.bias"),
    }[part]
    path = tmp_path / "m.safetensors"
    lacking = refusal(write_safetensors(path, without(sd15_tensors, prefix + name)), tokenizer=vocabulary)
    assert f"{part} in m.safetensors lacks 1 tensor (" in lacking and ".bias)" in lacking
    foreign = refusal(
        write_safetensors(path, {**sd15_tensors, prefix + "extra.scale": torch.zeros(1)}),
        tokenizer=vocabulary,
    )
    assert f"{part} in m.safetensors holds unexpected 1 tensor" in foreign and "extra.scale" in foreign
    misshapen = refusal(write_safetensors(path, {**sd15_tensors, prefix + name: torch.zeros(17)}), tokenizer=vocabulary)
    assert f"{part} in m.safetensors has other shapes in 1 tensor" in misshapen


def test_parts_of_different_models(tmp_path, sd15_tensors, vocabulary):
    other = without(single_file_tensors(tiny_modules("koala")), UNET)
    mixed = {name: tensor for name, tensor in sd15_tensors.items() if name.startswith(UNET)}
    mixed |= {name.replace("conditioner.embedders.0.", "cond_stage_model."): tensor for name, tensor in other.items()}
    narrow = {
        name: tensor[:, :512] if "attn2.to_k" in name or "attn2.to_v" in name else tensor
        for name, tensor in mixed.items()
    }
    assert "different models" in refusal(write_safetensors(tmp_path / "m.safetensors", narrow), tokenizer=vocabulary)


# --- tokenizers ---------------------------------------------------------------------------------------------


def test_no_vocabulary_anywhere(tmp_path, sd15_tensors, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    path = write_safetensors(tmp_path / "m.safetensors", sd15_tensors)
    with pytest.raises(InputError, match=r"--tokenizer.*vocab.json.*COMFYUI_PATH"):
        load_checkpoint(path)


def test_given_vocabulary_that_is_none(tmp_path, sd15_tensors):
    path = write_safetensors(tmp_path / "m.safetensors", sd15_tensors)
    with pytest.raises(InputError, match="neither vocab.json and merges.txt nor tokenizer.json"):
        load_checkpoint(path, tokenizer=tmp_path)
    folder = write_clip_vocabulary(tmp_path / "broken")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, tokenizer=folder)


def test_vocabulary_of_another_model(tmp_path, sd15_tensors, vocabulary):
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    path = write_safetensors(tmp_path / "m.safetensors", {**sd15_tensors, name: torch.zeros(300, 768)})
    with pytest.raises(InputError, match="520 tokens, the text encoder 300"):
        load_checkpoint(path, tokenizer=vocabulary)


# --- diffusers folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_diffusers_folder(tmp_path / "model", tiny_modules("sd15"))


def test_folder_that_is_no_diffusers_model(tmp_path, folder):
    assert "no model_index.json" in refusal(tmp_path)
    assert f"give {folder}." in refusal(folder / "unet")
    (tmp_path / "a.safetensors").touch()
    assert "a.safetensors say" in refusal(tmp_path)


def test_folder_of_another_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    flux = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(flux))
    assert "FluxPipeline without unet" in refusal(folder)
    (folder / "model_index.json").write_text(
        json.dumps({**index, "unet": ["diffusers", "UNetSpatioTemporalConditionModel"]})
    )
    assert "UNetSpatioTemporalConditionModel" in refusal(folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["transformers", "T5EncoderModel"]}))
    assert "T5EncoderModel" in refusal(folder)
    (folder / "model_index.json").write_text("{")
    assert "no readable JSON" in str(pytest.raises(InputError, load_checkpoint, folder).value)


def test_folder_of_pickles(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "a pickle" in refusal(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "holds no .safetensors weights" in str(pytest.raises(InputError, load_checkpoint, folder).value)


def test_folder_with_an_unfit_unet_or_scheduler(folder):
    tiny_modules("sd15").unet.__class__(
        in_channels=9, block_out_channels=(32, 64), cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    assert "an inpainting model" in refusal(folder)
    tiny_modules("sd15").unet.save_pretrained(folder / "unet")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "class_embed_type": "identity"}))
    assert "class_embed_type" in refusal(folder)
    odd: Any = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 256})
    odd.save_pretrained(folder / "unet")
    assert "time_cond_proj_dim" in refusal(folder)
    tiny_modules("sd15").unet.save_pretrained(folder / "unet")
    vae = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**vae, "latents_mean": [0.5] * 4}))
    assert "latents_mean" in refusal(folder)
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    for scheduler, expected in (
        (FlowMatchEulerDiscreteScheduler(), "flow-matching"),
        (DDIMScheduler(prediction_type="sample"), "prediction_type is sample"),
        (EDMEulerScheduler(), "EDM"),
    ):
        scheduler.save_pretrained(folder / "scheduler")
        with pytest.raises(InputError, match=expected):
            load_checkpoint(folder)

"""Parts of a checkpoint that are given, missing, of another model or of no numbers: used, or named in the refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from apt_train.errors import InputError
from apt_train.families.load import load_checkpoint
from tests.tiny import schedule_of, unet_of
from tests.tiny_checkpoint import (
    VOCABULARY,
    Modules,
    single_file_tensors,
    tiny_modules,
    vae_to_ldm,
    write_clip_vocabulary,
    write_diffusers_folder,
    write_safetensors,
)

OWN_VAE = "first_stage_model."
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_vocabulary(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def sd15() -> dict[str, torch.Tensor]:
    return single_file_tensors(tiny_modules("sd15"))


@pytest.fixture
def file(tmp_path: Path, sd15: dict[str, torch.Tensor]) -> Path:
    return write_safetensors(tmp_path / "m.safetensors", sd15)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_diffusers_folder(tmp_path / "model", tiny_modules("sd15"))


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Another VAE than that of `tiny_modules`, of the same build."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        own = tiny_modules("sd15").vae
        other: Any = AutoencoderKL.from_config(own.config)
        return other.eval()


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert message.endswith(".") and message.isprintable() and len(message) < 500
    return message


# --- a VAE beside the model -----------------------------------------------------------------------------------


def write_vae(folder: Path, layout: str, vae: AutoencoderKL) -> Path:
    path, state = folder / "vae.safetensors", vae.state_dict()
    if layout == "original":
        return write_safetensors(path, vae_to_ldm(state, levels=2))
    if layout == "diffusers":
        return write_safetensors(path, state)
    if layout == "checkpoint":
        modules = tiny_modules("sd15")
        return write_safetensors(path, single_file_tensors(Modules("sd15", modules.unet, modules.encoders, vae)))
    part = folder / "given" / "vae"
    vae.save_pretrained(part)
    return part if layout == "folder" else part.parent


@pytest.mark.parametrize("layout", ["original", "diffusers", "checkpoint", "folder", "model folder"])
def test_a_vae_can_be_given(tmp_path: Path, file: Path, vocabulary: Path, vae, layout: str) -> None:
    loaded = load_checkpoint(file, tokenizer=vocabulary, vae=write_vae(tmp_path, layout, vae))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = vae.encode(images).latent_dist.mean * 0.18215
    assert torch.allclose(loaded.encode(images)[0], expected, atol=1e-5)
    own = load_checkpoint(file, tokenizer=vocabulary)
    assert not torch.allclose(own.encode(images)[0], expected, atol=1e-3)
    assert loaded.digest != own.digest


def test_a_model_without_its_own_vae_takes_the_given_one(
    tmp_path: Path, sd15, folder: Path, vocabulary: Path, vae
) -> None:
    bare = {name: tensor for name, tensor in sd15.items() if not name.startswith(OWN_VAE)}
    path = write_safetensors(tmp_path / "bare.safetensors", bare)
    given = write_vae(tmp_path, "original", vae)
    assert "UNet alone" not in (message := refusal(path, tokenizer=vocabulary)) and "--vae" in message
    first = load_checkpoint(path, tokenizer=vocabulary, vae=given)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    second = load_checkpoint(folder, vae=given)
    images = torch.rand(1, 3, 16, 16)
    assert torch.allclose(first.encode(images)[0], second.encode(images)[0], atol=1e-5)


def test_another_vae_is_another_model(tmp_path: Path, file: Path, vocabulary: Path, vae) -> None:
    given = write_vae(tmp_path, "original", vae)
    first = load_checkpoint(file, tokenizer=vocabulary, vae=given).digest
    assert load_checkpoint(file, tokenizer=vocabulary, vae=given).digest == first
    with given.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    assert load_checkpoint(file, tokenizer=vocabulary, vae=given).digest != first


def test_a_vae_that_is_none_is_refused(tmp_path: Path, file: Path, vocabulary: Path, sd15) -> None:
    assert "does not exist" in refusal(file, tokenizer=vocabulary, vae=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(file, tokenizer=vocabulary, vae=tmp_path / "empty")
    text = {name: tensor for name, tensor in sd15.items() if name.startswith("cond_stage")}
    other = write_safetensors(tmp_path / "text.safetensors", text)
    assert "VAE in text.safetensors" in refusal(file, tokenizer=vocabulary, vae=other)


# --- a VAE of the other family --------------------------------------------------------------------------------


def test_a_vae_folder_of_the_other_family_is_refused(
    tmp_path: Path, file: Path, folder: Path, vocabulary: Path
) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    for message in (refusal(folder), refusal(file, tokenizer=vocabulary, vae=folder / "vae")):
        assert "one of SDXL" in message and "UNet reads the latents of SD1.5" in message
    del config["scaling_factor"]  # as SD1.5's published VAE: diffusers takes 0.18215
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    sdxl = write_safetensors(tmp_path / "xl.safetensors", single_file_tensors(tiny_modules("koala")))
    assert "one of SD1.5" in refusal(sdxl, tokenizer=vocabulary, vae=folder)


@pytest.mark.parametrize("said", ["stable-diffusion-xl-v1-base/vae", "stable-diffusion-v1/vae", "", "other"])
def test_a_vae_file_is_of_the_family_that_it_says(tmp_path: Path, file: Path, vocabulary: Path, vae, said: str) -> None:
    tensors = vae_to_ldm(vae.state_dict(), levels=2)
    given = write_safetensors(tmp_path / "vae.safetensors", tensors, metadata={"modelspec.architecture": said})
    if "xl" in said:
        assert "one of SDXL" in refusal(file, tokenizer=vocabulary, vae=given)
    else:
        assert load_checkpoint(file, tokenizer=vocabulary, vae=given).vae is not None


def test_a_vae_out_of_a_checkpoint_of_the_other_family_is_refused(tmp_path: Path, file: Path, vocabulary: Path) -> None:
    sdxl = write_safetensors(tmp_path / "xl.safetensors", single_file_tensors(tiny_modules("koala")))
    assert "one of SDXL" in refusal(file, tokenizer=vocabulary, vae=sdxl)
    assert "one of SD1.5" in refusal(sdxl, tokenizer=vocabulary, vae=file)


def test_an_sd2_folder_is_read_and_takes_the_vae_of_sd15(tmp_path: Path, vae) -> None:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=32, num_hidden_layers=2, num_attention_heads=16,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=0,
    )  # fmt: skip
    unet: Any = UNet2DConditionModel.from_config(
        {**tiny_modules("sd15").unet.config, "cross_attention_dim": 1024, "use_linear_projection": True}
    )
    modules = Modules("sd2", unet, [CLIPTextModel(config)], tiny_modules("sd15").vae)
    folder = write_diffusers_folder(tmp_path / "sd2", modules, {"prediction_type": "v_prediction"})
    loaded = load_checkpoint(folder)
    assert (loaded.family.name, loaded.text_encoders[0].embedding_key) == ("sd2", "clip_h")
    assert loaded.schedule.prediction == "v_prediction"
    for said, is_refused in (("stable-diffusion-v1/vae", False), ("stable-diffusion-xl-v1-base/vae", True)):
        tensors = vae_to_ldm(vae.state_dict(), levels=2)
        given = write_safetensors(tmp_path / "vae.safetensors", tensors, metadata={"modelspec.architecture": said})
        if is_refused:
            assert "the UNet reads the latents of SD1.5" in refusal(folder, vae=given)
        else:
            assert load_checkpoint(folder, vae=given).vae is not None


# --- zero terminal SNR ----------------------------------------------------------------------------------------


def test_zero_terminal_snr_can_be_said(file: Path, folder: Path, vocabulary: Path) -> None:
    said: dict[str, Any] = {"tokenizer": vocabulary}
    for path, words in ((file, said), (folder, {})):
        told = schedule_of(load_checkpoint(path, prediction_type="v_prediction", zero_terminal_snr=True, **words))
        assert told.prediction == "v_prediction" and told.zero_terminal_snr
        assert not load_checkpoint(path, prediction_type="v_prediction", **words).schedule.zero_terminal_snr
        assert "epsilon" in refusal(path, zero_terminal_snr=True, **words)


def test_zero_terminal_snr_can_be_taken_back(folder: Path) -> None:
    DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(folder / "scheduler")
    assert load_checkpoint(folder).schedule.zero_terminal_snr
    assert not load_checkpoint(folder, zero_terminal_snr=False).schedule.zero_terminal_snr


@pytest.mark.parametrize("said", ["flow", "rectified_flow", "sample", "something"])
def test_another_prediction_is_refused_unless_it_is_overruled(tmp_path: Path, sd15, vocabulary: Path, said) -> None:
    metadata = {"modelspec.prediction_type": said}
    path = write_safetensors(tmp_path / "m.safetensors", sd15, metadata=metadata)
    assert f"prediction_type is {said}" in refusal(path, tokenizer=vocabulary)
    loaded = load_checkpoint(path, tokenizer=vocabulary, prediction_type="epsilon")
    assert schedule_of(loaded).prediction == "epsilon"


# --- weights that are not numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{UNET}out.2.bias", "UNet"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text encoder"),
        ("first_stage_model.decoder.conv_out.bias", "VAE"),
    ],
)
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, sd15, vocabulary: Path, written, value, name, part
) -> None:
    tensor = sd15[name].clone()
    tensor[-1] = value
    path = write_safetensors(tmp_path / "m.safetensors", {**sd15, name: tensor}, dtype=written)
    message = refusal(path, tokenizer=vocabulary)
    assert f"{part} in m.safetensors holds NaN or infinite weights in 1 tensor" in message and "fp32" not in message


def test_weights_too_large_for_the_type_are_named(tmp_path: Path, sd15, vocabulary: Path) -> None:
    name = f"{UNET}out.2.bias"
    path = write_safetensors(tmp_path / "m.safetensors", {**sd15, name: torch.full_like(sd15[name], 1e6)})
    assert load_checkpoint(path, tokenizer=vocabulary).unet is not None
    assert "too large for torch.float16" in refusal(path, tokenizer=vocabulary, dtype=torch.float16)


# --- kinds that were called damaged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{UNET}scaled_fp8", "scaled fp8"),
        (f"{UNET}out.2.scale_weight", "scaled fp8"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.scale_weight", "scaled fp8"),
        (f"{UNET}out.2.weight.absmax", "bitsandbytes"),
        (f"{UNET}time_embed.cond_proj.weight", "LCM"),
    ],
)
def test_quantised_and_distilled_files_are_named(tmp_path: Path, sd15, vocabulary: Path, name: str, kind: str) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {**sd15, name: torch.ones(1)})
    assert kind in refusal(path, tokenizer=vocabulary)


def test_a_folder_of_parts_of_different_models_is_refused(folder: Path) -> None:
    config = CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    told = "model has text encoders of 64 channels where its UNet reads 768: its parts are of different models"
    assert told in refusal(folder)


def test_a_tokenizer_given_with_a_folder_takes_the_place_of_its_own(tmp_path: Path) -> None:
    """SDXL's second encoder pads with `!`, which a vocabulary alone does not say."""
    folder = write_diffusers_folder(tmp_path / "model", tiny_modules("sdxl"))
    words = write_clip_vocabulary(tmp_path / "words")
    vocabulary = json.loads((words / "vocab.json").read_text())
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    own, given = (load_checkpoint(folder, tokenizer=words).text_encoders for words in (None, words))
    assert [encoder.tokenizer.get_vocab()["!"] for encoder in (*own, *given)] == [0, 0, 1, 1]
    assert [encoder.tokenizer.pad_token for encoder in given] == ["<|endoftext|>", "!"]


def test_lcm_folders_are_named(folder: Path) -> None:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    kept = scheduler.read_text()
    for name in ("LCMScheduler", "TCDScheduler"):
        scheduler.write_text(json.dumps({**json.loads(kept), "_class_name": name}))
        assert f"is an LCM (its scheduler is {name})" in refusal(folder)
    scheduler.write_text(kept)
    unet = folder / "unet" / "config.json"
    unet.write_text(json.dumps({**json.loads(unet.read_text()), "time_cond_proj_dim": 256}))
    assert "is an LCM" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_modules("sd15").unet.save_pretrained(folder / "unet", max_shard_size="4MB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    whole = load_checkpoint(folder)
    (folder / "unet" / f"._{shards[0].name}").write_bytes(b"\0\5\x16\7")
    assert load_checkpoint(folder).digest == whole.digest
    shards[1].unlink()
    assert f"model/unet lacks {shards[1].name}" in refusal(folder)
    for shard in shards:
        shard.unlink(missing_ok=True)
    assert f"model/unet lacks {shards[0].name}" in refusal(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for content in (
        "[]",
        '{"weight_map": ["x"]}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
    ):
        index.write_text(content)
        assert "unet" in refusal(folder)


@pytest.mark.parametrize(
    "stray", ["lora_unet_x.lora_up.weight", "clip_l", "ip_adapter.1.to_k.weight", "zero_convs.0.0"]
)
def test_a_stray_name_does_not_make_a_checkpoint_another_thing(tmp_path: Path, sd15, vocabulary: Path, stray) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {**sd15, stray: torch.ones(1)})
    assert load_checkpoint(path, tokenizer=vocabulary).family.name == "sd15"
    lora = {f"lora_unet_{number}.lora_up.weight": torch.ones(1) for number in range(40)}
    path = write_safetensors(tmp_path / "m.safetensors", {**lora, "something": torch.ones(1)})
    assert "is a LoRA" in refusal(path, tokenizer=vocabulary)


# --- what systems and editors leave in a folder ---------------------------------------------------------------


def test_hidden_files_count_for_nothing(folder: Path) -> None:
    clean = load_checkpoint(folder)
    for part in ("", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        place = folder / part
        for name in (
            "._x.json",
            ".DS_Store",
            "._diffusion_pytorch_model.safetensors",
            "._model.safetensors",
            "._vocab.json",
        ):
            (place / name).write_bytes(b"\0\5\x16\7")
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("{")
    loaded = load_checkpoint(folder)
    assert loaded.digest == clean.digest
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(unet_of(loaded).conv_in.weight, weights["conv_in.weight"])

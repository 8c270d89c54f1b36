"""Loading checkpoints: the weights of the modules that were written, to the bit, computing what those compute.

Outputs may differ in the last bit: a mapped tensor lies at the file's alignment, and kernels sum accordingly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import nn

from apt_train.families.components import Components
from apt_train.families.load import load_checkpoint
from apt_train.families.reading.meta_build import build
from apt_train.families.reading.tokenizer_files import find_clip_vocabulary
from apt_train.families.sd.schedule_config import schedule_from_config
from tests.tiny import schedule_of, tiny_components, unet_of, vae_of
from tests.tiny_checkpoint import (
    UNETS,
    Modules,
    single_file_tensors,
    tiny_modules,
    write_clip_vocabulary,
    write_diffusers_folder,
    write_safetensors,
)

VAE_FILE = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    return write_clip_vocabulary(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session", params=list(UNETS))
def single_file(request, tmp_path_factory) -> tuple[Modules, Path]:
    modules = tiny_modules(request.param)
    path = tmp_path_factory.mktemp(request.param) / f"{request.param}.safetensors"
    return modules, write_safetensors(path, single_file_tensors(modules))


@pytest.fixture(scope="session")
def sd15_file(tmp_path_factory) -> Path:
    return write_safetensors(
        tmp_path_factory.mktemp("one") / "m.safetensors", single_file_tensors(tiny_modules("sd15"))
    )


def assert_same_model(components: Components, modules: Modules) -> None:
    assert_same_unet(components, modules)
    assert_same_text(components, modules)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = components.encode(images)
    ours, theirs = vae_of(components), cast("Any", modules.vae)
    scale = ours.config["scaling_factor"]
    posterior = theirs.encode(images).latent_dist
    assert std is not None
    assert torch.allclose(mean, posterior.mean * scale, atol=1e-5) and torch.allclose(
        std, posterior.std * scale, atol=1e-5
    )
    assert torch.allclose(components.decode(mean), theirs.decode(mean / scale).sample, atol=1e-5)
    assert_same_weights(ours, modules.vae)
    parts = (components.unet, ours, *(encoder.model for encoder in components.text_encoders))
    assert not any(part.training or any(p.requires_grad for p in part.parameters()) for part in parts)


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


def assert_same_unet(components: Components, modules: Modules) -> None:
    assert_same_weights(components.unet, modules.unet)
    seeded = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=seeded)
    context = torch.randn(1, 5, modules.unet.config["cross_attention_dim"], generator=seeded)
    added = {"text_embeds": torch.randn(1, 1280, generator=seeded), "time_ids": torch.full((1, 6), 8.0)}
    outputs = [
        unet(latents, torch.tensor([7]), context, added_cond_kwargs=added).sample
        for unet in (components.unet, modules.unet)
    ]
    assert torch.allclose(*outputs, atol=1e-5) and outputs[0].std() > 0.1


def assert_same_text(components: Components, modules: Modules) -> None:
    assert len(components.text_encoders) == len(modules.encoders)
    for encoder, reference in zip(components.text_encoders, modules.encoders, strict=True):
        assert_same_weights(encoder.model, reference)
        ids = encoder.tokenizer("a photo of a dog", return_tensors="pt").input_ids
        assert ids[0, -1] == encoder.tokenizer.eos_token_id
        ours, theirs = (model(ids, output_hidden_states=True) for model in (encoder.model, reference))
        for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        if encoder.pooled:
            projected = [
                model(torch.tensor([[598, 3, 4, 599, 599]])).text_embeds for model in (encoder.model, reference)
            ]
            assert torch.allclose(*projected, atol=1e-5)


def test_single_file_is_the_model_that_was_written(single_file, vocabulary):
    modules, path = single_file
    components = load_checkpoint(path, tokenizer=vocabulary)
    assert_same_model(components, modules)
    assert components.family.name == ("sd15" if modules.kind == "sd15" else "sdxl")
    assert components.family.resolution == (512 if modules.kind == "sd15" else 1024) // 4  # a VAE of factor 2, not 8
    assert components.source == path.name


def test_the_formats_other_suffix_is_read(sd15_file, vocabulary, tmp_path):
    copy = shutil.copy(sd15_file, tmp_path / "m.sft")
    assert load_checkpoint(copy, tokenizer=vocabulary).digest == load_checkpoint(sd15_file, tokenizer=vocabulary).digest


def test_sdxl_reads_the_last_but_one_layer_of_both(vocabulary, tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", single_file_tensors(tiny_modules("koala")))
    first, second = load_checkpoint(path, tokenizer=vocabulary).text_encoders
    assert [(e.layer, e.final_norm, e.pooled, e.embedding_key) for e in (first, second)] == [
        (-2, False, False, "clip_l"),
        (-2, False, True, "clip_g"),
    ]
    assert first.tokenizer.pad_token_id == first.tokenizer.eos_token_id and second.tokenizer.pad_token_id == 0
    assert first.tokenizer.model_max_length == second.tokenizer.model_max_length == 77
    assert first.tokenizer("a dog!").input_ids == second.tokenizer("a dog!").input_ids  # "!" is no padding in a prompt


def test_sd15_reads_the_last_layer_normed(sd15_file, vocabulary):
    (encoder,) = load_checkpoint(sd15_file, tokenizer=vocabulary).text_encoders
    assert (encoder.layer, encoder.final_norm, encoder.pooled, encoder.embedding_key) == (
        -1,
        True,
        False,
        "clip_l",
    )


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_our_original_layout_is_the_one_diffusers_reads(kind):
    """The writer of these tests is checked against diffusers' own converter, so that it cannot err with the loader."""
    modules = tiny_modules(kind)
    config = {**modules.unet.config, "class_embed_type": None}
    converted = convert_ldm_unet_checkpoint(dict(single_file_tensors(modules)), config)
    reference = modules.unet.state_dict()
    assert converted.keys() == reference.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in reference.items())


@pytest.mark.parametrize("written", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_the_files_type_unless_another_is_asked(tmp_path, vocabulary, written):
    path = write_safetensors(tmp_path / "m.safetensors", single_file_tensors(tiny_modules("sd15")), dtype=written)
    kept = load_checkpoint(path, tokenizer=vocabulary)
    assert {kept.unet.dtype, kept.text_encoders[0].model.dtype} == {written}
    assert {p.dtype for p in kept.unet.parameters()} == {written}
    assert vae_of(kept).dtype == torch.float32
    asked = load_checkpoint(path, tokenizer=vocabulary, dtype=torch.float32)
    assert asked.digest not in (kept.digest, load_checkpoint(path, tokenizer=vocabulary, dtype=torch.bfloat16).digest)
    assert asked.unet.dtype == asked.text_encoders[0].model.dtype == torch.float32
    assert torch.equal(unet_of(asked).conv_in.weight, tiny_modules("sd15").unet.conv_in.weight.to(written).float())


def test_of_several_types_in_a_file_that_of_most_numbers_counts(tmp_path, vocabulary):
    """Biases and norms in float32 are more tensors, but fewer numbers."""
    tensors = {
        name: tensor.float() if tensor.dim() == 1 else tensor.half()
        for name, tensor in single_file_tensors(tiny_modules("sd15")).items()
    }
    kept = load_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors), tokenizer=vocabulary)
    assert {p.dtype for p in kept.unet.parameters()} == {torch.float16}


def test_old_text_names_and_training_leftovers_are_read(tmp_path, vocabulary):
    tensors = {
        name.replace("transformer.text_model.", "transformer."): tensor
        for name, tensor in single_file_tensors(tiny_modules("sd15")).items()
    }
    tensors |= {
        "model_ema.decay": torch.ones(1),
        "alphas_cumprod": torch.ones(9),
        "cond_stage_model.logit_scale": torch.ones(1),
    }
    components = load_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors), tokenizer=vocabulary)
    assert_same_model(components, tiny_modules("sd15"))


def test_tiny_autoencoder_gives_fixed_latents(tmp_path, vocabulary):
    torch.manual_seed(0)
    taesd: Any = AutoencoderTiny().eval()
    tensors = {k: v for k, v in single_file_tensors(tiny_modules("sd15")).items() if not k.startswith("first_stage")}
    for name, tensor in taesd.state_dict().items():
        side, _, layer, rest = name.split(".", 3)
        tensors[f"first_stage_model.taesd_{side}.{int(layer) + (side == 'decoder')}.{rest}"] = tensor
    tensors["first_stage_model.vae_scale"] = torch.tensor(0.18215)
    components = load_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors), tokenizer=vocabulary)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents, std = components.encode(images)
    assert std is None and components.family.vae_factor == 8
    assert torch.allclose(latents, taesd.encode(images).latents)
    assert torch.allclose(components.decode(latents), taesd.decode(latents).sample)


def test_vae_computes_in_float32_under_autocast(sd15_file, vocabulary):
    components = load_checkpoint(sd15_file, tokenizer=vocabulary)
    images = torch.rand(1, 3, 16, 16)
    plain = components.encode(images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(components.encode(images.bfloat16().float())[0], components.encode(images.bfloat16())[0])
        assert torch.equal(components.encode(images)[0], plain)


def test_tensors_are_put_in_place_not_copied():
    tensors = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    layer = build(lambda: nn.Linear(2, 3), tensors, what="The layer", dtype=None)
    assert layer.weight.data_ptr() == tensors["weight"].data_ptr()
    assert layer.bias.data_ptr() == tensors["bias"].data_ptr()


# --- prediction type and noise schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "metadata", "expected"),
    [
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        (("ztsnr",), {}, ("epsilon", False)),
        *(
            ((), {"modelspec.prediction_type": said}, ("v_prediction", False))
            for said in ("v", "v_prediction", "V-Prediction", "v_pred", "v-pred", "vpred", " velocity ")
        ),
        *(((), {"modelspec.prediction_type": said}, ("epsilon", False)) for said in ("epsilon", "Epsilon", "eps", "")),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, ("v_prediction", False)),  # as merges come to have it
        ((), {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, ("v_prediction", True)),
    ],
)
def test_single_file_says_what_it_predicts(tmp_path, vocabulary, marks, metadata, expected):
    tensors = single_file_tensors(tiny_modules("sd15")) | {mark: torch.zeros(0) for mark in marks}
    path = write_safetensors(tmp_path / "m.safetensors", tensors, metadata=metadata)
    schedule = schedule_of(load_checkpoint(path, tokenizer=vocabulary))
    assert (schedule.prediction, schedule.zero_terminal_snr) == expected
    assert schedule.num_timesteps == 1000


def test_prediction_type_given_wins(sd15_file, vocabulary):
    loaded = load_checkpoint(sd15_file, tokenizer=vocabulary, prediction_type="v_prediction")
    assert schedule_of(loaded).prediction == "v_prediction"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_schedule_is_the_one_diffusers_makes_of_the_same_configuration(config):
    expected: Any = DDIMScheduler.from_config(config)
    schedule = schedule_from_config(config)
    assert torch.allclose(schedule.alphas_cumprod, expected.alphas_cumprod, atol=2e-6)
    assert schedule.prediction == expected.config["prediction_type"]
    assert schedule.zero_terminal_snr == bool(config.get("rescale_betas_zero_snr"))


SCHEDULERS = [
    "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
]  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_may_name_any_scheduler_that_samples_from_the_same_schedule(tmp_path, name):
    """As diffusers saves it: some have settings of which it writes -Infinity."""
    folder = write_diffusers_folder(tmp_path / "model", tiny_modules("sd15"))
    scheduler = getattr(diffusers, name)(prediction_type="v_prediction", beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    found = schedule_of(load_checkpoint(folder))
    assert found.prediction == "v_prediction"
    assert torch.allclose(found.alphas_cumprod, scheduler.alphas_cumprod, atol=2e-6)


# --- diffusers folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "ssd1b"])
def test_diffusers_folder_is_the_model_that_was_saved(tmp_path, kind):
    settings = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "beta_schedule": "scaled_linear",
    }
    components = load_checkpoint(write_diffusers_folder(tmp_path / "model", tiny_modules(kind), settings))
    assert_same_model(components, tiny_modules(kind))
    schedule = schedule_of(components)
    assert schedule.prediction == "v_prediction" and schedule.zero_terminal_snr
    assert components.family.name == ("sd15" if kind == "sd15" else "sdxl")
    assert [encoder.layer for encoder in components.text_encoders] == ([-1] if kind == "sd15" else [-2, -2])
    assert [encoder.pooled for encoder in components.text_encoders] == ([False] if kind == "sd15" else [False, True])
    assert components.source == "model"


def test_fp16_variants_shards_and_old_attention_names_are_read(tmp_path):
    modules = tiny_modules("sd15")
    folder = write_diffusers_folder(tmp_path / "model", modules, variant="fp16")
    assert not list(folder.glob("*/*model.safetensors"))
    shutil.rmtree(folder / "unet")
    modules.unet.save_pretrained(folder / "unet", max_shard_size="4MB")
    assert len(list(folder.glob("unet/*.safetensors"))) > 1
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "vae" / VAE_FILE).items()}
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    write_safetensors(folder / "vae" / VAE_FILE, weights)
    assert_same_model(load_checkpoint(folder), modules)


def test_custom_model_with_its_own_word_tokenizer(tmp_path):
    """A folder as the embedded default is: a word tokenizer of 16 tokens, other widths, its own scaling."""
    parts = tiny_components("sd15")
    (encoder,) = parts.text_encoders
    folder = tmp_path / "drawn"
    unet_of(parts).save_pretrained(folder / "unet")
    vae_of(parts).save_pretrained(folder / "vae")
    cast("Any", encoder.model).save_pretrained(folder / "text_encoder")
    encoder.tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    index = {part: ["transformers", "CLIPTextModel"] for part in ("text_encoder", "tokenizer", "scheduler")}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    loaded = load_checkpoint(folder)
    assert (loaded.family.name, loaded.family.resolution, loaded.family.vae_factor) == ("custom", 64, 4)
    assert loaded.size_multiple == parts.size_multiple
    (read,) = loaded.text_encoders
    ids = read.tokenizer("a photo of Toy on grass", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(
        ids, encoder.tokenizer("a photo of toy on grass", padding="max_length", return_tensors="pt").input_ids
    )
    assert torch.equal(read.model(ids).last_hidden_state, encoder.model(ids).last_hidden_state)
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(loaded.encode(images)[0], parts.encode(images)[0])


# --- where the vocabulary comes from, what a checkpoint is known by -----------------------------------------


def test_vocabulary_is_looked_for_in_order(sd15_file, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    cached = write_clip_vocabulary(cache / "models--openai--clip-vit-large-patch14" / "snapshots" / "abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr("socket.socket", None)

    def source(**options) -> str:
        return str(load_checkpoint(sd15_file, **options).text_encoders[0].tokenizer.name_or_path)

    assert source() == str(cached)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "host"))
    assert source() == str(cached)  # the host there has none
    host = write_clip_vocabulary(tmp_path / "host" / "comfy" / "sd1_tokenizer")
    assert source() == str(host)
    given = write_clip_vocabulary(tmp_path / "given" / "tokenizer")
    assert source(tokenizer=given.parent) == source(tokenizer=str(given)) == str(given)


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)  # fmt: skip
def test_the_download_folder_is_where_its_own_variables_say(variable, below, tmp_path, monkeypatch):
    for name in ("COMFYUI_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    snapshots = tmp_path / below / "models--openai--clip-vit-large-patch14" / "snapshots"
    cached = write_clip_vocabulary(snapshots / "abc")
    monkeypatch.setenv(variable, str(tmp_path))
    assert find_clip_vocabulary(None) == cached


def test_digest_is_of_the_content(sd15_file, vocabulary, tmp_path):
    copy = shutil.copy(sd15_file, tmp_path / "renamed.safetensors")
    first, second = (load_checkpoint(path, tokenizer=vocabulary).digest for path in (sd15_file, copy))
    assert first == second and len(first) == 64
    with open(copy, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert load_checkpoint(copy, tokenizer=vocabulary).digest != first


def test_digest_of_a_folder_covers_weights_and_settings(tmp_path):
    folder = write_diffusers_folder(tmp_path / "model", tiny_modules("sd15"))
    first = load_checkpoint(folder).digest
    assert load_checkpoint(shutil.copytree(folder, tmp_path / "elsewhere")).digest == first
    (folder / "unused.txt").write_text("notes")
    assert load_checkpoint(folder).digest == first
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    assert load_checkpoint(folder).digest != first

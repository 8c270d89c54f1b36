"""The LoRA and embedding files: names other programs know, the live adapter's output after loading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, AdapterTargets
from apt_train.errors import InputError
from apt_train.families.components import Components, Family
from apt_train.families.sd.layer_names import original_path
from apt_train.families.sd.published import FILE_WORDS
from apt_train.run.export import kohya_name, lora_from_kohya, lora_to_kohya, save_embedding, save_lora
from apt_train.sample.apply import personalized
from tests.lora_files import metadata_of
from tests.tiny import tiny_components, unet_of
from tests.training import quick_config, run

SDXL = Family("sdxl", 1024, 8, FILE_WORDS["sdxl"])
SD15 = Family("sd15", 512, 8, FILE_WORDS["sd15"])


def _adapted(kind: str, *, rank: int = 3, alpha: float = 1.5, targets: AdapterTargets = "attention") -> Components:
    """A tiny model with an adapter that does something."""
    parts = tiny_components(kind)
    _train_a_little(parts.unet, rank, alpha, targets)
    return parts


def _train_a_little(unet: nn.Module, rank: int, alpha: float, targets: AdapterTargets) -> None:
    add_adapter(unet, AdapterConfig(rank=rank, alpha=alpha), targets=SD15.adapted(targets))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in Adapter(unet).parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


def _lora(parts: Components, alpha: float = 1.5) -> dict[str, Tensor]:
    return lora_to_kohya(Adapter(parts.unet).state(), alpha, parts.family, unet_of(parts).config)


def _output(unet: nn.Module) -> Tensor:
    """The UNet's prediction for one fixed input."""
    draw = torch.Generator().manual_seed(2)
    config: Any = unet.config
    latents = torch.randn(2, 4, 16, 16, generator=draw)
    text = torch.randn(2, 7, config["cross_attention_dim"], generator=draw)
    extra: dict[str, Tensor] = {}
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        extra = {"text_embeds": torch.randn(2, pooled, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 700]), text, added_cond_kwargs=extra or None).sample


def _pipeline(parts: Components) -> Any:
    """diffusers' own pipeline around the model, for its own way of loading a LoRA."""
    common: dict[str, Any] = {
        "vae": parts.vae,
        "unet": parts.unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    encoders = parts.text_encoders
    common |= {"text_encoder": encoders[0].model, "tokenizer": encoders[0].tokenizer}
    if len(encoders) == 1:
        common |= {"safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**common, requires_safety_checker=False)
    common |= {"text_encoder_2": encoders[1].model, "tokenizer_2": encoders[1].tokenizer}
    return StableDiffusionXLPipeline(**common)


# -- the file is the adapter


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("targets", ["attention", "attention+ff"])
@pytest.mark.parametrize("alpha", [1.5, 3.0, 12.0])
def test_diffusers_draws_with_the_file_as_with_the_live_adapter(
    tmp_path: Path, kind: str, targets: AdapterTargets, alpha: float
) -> None:
    live = _adapted(kind, rank=3, alpha=alpha, targets=targets)
    expected = _output(live.unet)
    with Adapter(live.unet).disabled():
        base = _output(live.unet)
    save_lora(tmp_path / "toy.safetensors", _lora(live, alpha), {"modelspec.title": "toy"})

    fresh = tiny_components(kind)
    assert torch.equal(_output(fresh.unet), base)
    pipeline = _pipeline(fresh)
    pipeline.load_lora_weights(str(tmp_path), weight_name="toy.safetensors")
    assert (expected - base).abs().max() > 0.05  # the adapter shows
    torch.testing.assert_close(_output(pipeline.unet), expected, atol=2e-5, rtol=1e-5)


# SDXL and UNets cut from it: layers per block, transformer depth per level (the first level has none), middle
CUTS = {
    "sdxl": (2, (1, 2, 10), "UNetMidBlock2DCrossAttn"),
    "ssd-1b": (2, (1, 2, 4), "UNetMidBlock2D"),
    "koala": (1, (1, 2, 5), "UNetMidBlock2DCrossAttn"),
    "no-middle": (1, (1, 1, 1), None),
}


def _cut_unet(cut: str) -> UNet2DConditionModel:
    """SDXL's block structure at 1/20 of its width, with the cut's block counts and depths."""
    layers, depths, middle = CUTS[cut]
    attention = "CrossAttnDownBlock2D"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), norm_num_groups=8,
            layers_per_block=layers, down_block_types=("DownBlock2D", attention, attention),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), mid_block_type=middle,
            transformer_layers_per_block=depths, attention_head_dim=cast("Any", (1, 2, 2)),
            cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
        ).eval()  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
def test_sdxl_cuts_load_in_diffusers(tmp_path: Path, cut: str) -> None:
    live = _cut_unet(cut)
    _train_a_little(live, rank=2, alpha=1.0, targets="attention+ff")
    lora = lora_to_kohya(Adapter(live).state(), 1.0, SDXL, live.config)
    save_lora(tmp_path / "x.safetensors", lora, {})

    fresh = tiny_components("sdxl")
    fresh.unet = _cut_unet(cut)
    pipeline = _pipeline(fresh)
    pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    torch.testing.assert_close(_output(pipeline.unet), _output(live), atol=2e-5, rtol=1e-5)


# -- names


@pytest.mark.parametrize(
    ("layers", "block", "name"),
    [
        # SDXL, as kohya's files for the published model have them
        (2, "down_blocks.1.attentions.0", "input_blocks_4_1"),
        (2, "down_blocks.1.attentions.1", "input_blocks_5_1"),
        (2, "down_blocks.2.attentions.0", "input_blocks_7_1"),
        (2, "down_blocks.2.attentions.1", "input_blocks_8_1"),
        (2, "mid_block.attentions.0", "middle_block_1"),
        (2, "up_blocks.0.attentions.0", "output_blocks_0_1"),
        (2, "up_blocks.0.attentions.2", "output_blocks_2_1"),
        (2, "up_blocks.1.attentions.0", "output_blocks_3_1"),
        (2, "up_blocks.1.attentions.2", "output_blocks_5_1"),
        # KOALA: one residual layer less per level
        (1, "down_blocks.1.attentions.0", "input_blocks_3_1"),
        (1, "down_blocks.2.attentions.0", "input_blocks_5_1"),
        (1, "up_blocks.1.attentions.1", "output_blocks_3_1"),
        # levels that differ
        ([1, 2, 3], "down_blocks.2.attentions.2", "input_blocks_8_1"),
        ([1, 2, 3], "up_blocks.1.attentions.0", "output_blocks_4_1"),
    ],
)
@pytest.mark.parametrize(
    ("layer", "end"),
    [
        ("transformer_blocks.9.attn2.to_out.0", "transformer_blocks_9_attn2_to_out_0"),
        ("transformer_blocks.0.ff.net.0.proj", "transformer_blocks_0_ff_net_0_proj"),
    ],
)
def test_sdxl_names(layers: int | list[int], block: str, name: str, layer: str, end: str) -> None:
    config = {"layers_per_block": layers, "down_block_types": ["a", "b", "c"]}
    assert kohya_name(f"{block}.{layer}", SDXL, config) == f"lora_unet_{name}_{end}"


def test_sd15_and_custom_names_keep_the_module_path() -> None:
    for family in (SD15, Family("custom", 64, 4)):
        module = "up_blocks.3.attentions.1.transformer_blocks.0.attn2.to_out.0"
        assert (
            kohya_name(module, family, {}) == "lora_unet_up_blocks_3_attentions_1_transformer_blocks_0_attn2_to_out_0"
        )


def test_sgm_names_never_meet() -> None:
    """Every attention layer of an UNet with uneven levels has a name of its own."""
    config = {"layers_per_block": [1, 3, 2], "down_block_types": ["a", "b", "c"]}
    modules = [f"down_blocks.{x}.attentions.{i}.q" for x, n in enumerate([1, 3, 2]) for i in range(n)]
    modules += [f"up_blocks.{x}.attentions.{i}.q" for x, n in enumerate([2, 3, 1]) for i in range(n + 1)]
    names = [original_path(module, config) for module in [*modules, "mid_block.attentions.0.q"]]
    assert None not in names and len(set(names)) == len(names)


def test_keys_alpha_and_rank(tmp_path: Path) -> None:
    lora = _lora(_adapted("sdxl", rank=3, alpha=1.5))
    modules = {key.split(".")[0] for key in lora}
    assert set(lora) == {m + part for m in modules for part in (".lora_down.weight", ".lora_up.weight", ".alpha")}
    for module in modules:
        assert lora[module + ".alpha"].shape == () and lora[module + ".alpha"].item() == 1.5
        assert lora[module + ".lora_down.weight"].shape[0] == lora[module + ".lora_up.weight"].shape[1] == 3


# -- every key is matched


def _read(lora: dict[str, Tensor], parts: Components) -> dict[str, Tensor]:
    return lora_from_kohya(lora, Adapter(parts.unet).state(), 1.5, parts.family, unet_of(parts).config)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_what_is_written_is_read_back(kind: str) -> None:
    parts = _adapted(kind, targets="attention+ff")
    state = Adapter(parts.unet).state()
    again = _read(_lora(parts), parts)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_key_is_matched_or_named(kind: str) -> None:
    """One name, one shape, one missing part at a time."""
    parts = _adapted(kind)
    lora = _lora(parts)
    name = sorted(key.split(".")[0] for key in lora)[5]
    down = name + ".lora_down.weight"
    renamed = {key.replace("attn1", "attn7"): value for key, value in lora.items()}
    for broken, words in (
        (renamed, "attn7"),
        ({**lora, down: lora[down][:, :-1]}, down),
        ({**lora, name + ".lora_up.weight": lora[name + ".lora_up.weight"][:, :-1]}, name + ".lora_up"),
        ({**lora, name + ".alpha": torch.ones(1)}, name + ".alpha"),
        ({**lora, name + ".alpha": torch.tensor(1.0)}, name + ".alpha is 1, not 1.5"),
        ({key: value for key, value in lora.items() if key != name + ".alpha"}, name + ".alpha"),
        ({**lora, name + ".bias": torch.zeros(1)}, name + ".bias"),
    ):
        with pytest.raises(InputError) as caught:
            _read(broken, parts)
        assert words in str(caught.value)


def test_names_of_the_other_family_are_refused() -> None:
    parts = _adapted("sdxl")
    diffusers_names = lora_to_kohya(Adapter(parts.unet).state(), 1.5, SD15, unet_of(parts).config)
    with pytest.raises(InputError, match="no adapted layer has a lora_unet_"):
        _read(diffusers_names, parts)


def test_layers_without_a_name_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"other_embedding\.linear_1"):
        lora_to_kohya({"other_embedding.linear_1.lora_A.weight": torch.zeros(1, 1)}, 1.0, SDXL, {})
    with pytest.raises(RuntimeError, match="to_q.bias"):
        lora_to_kohya({"mid_block.attentions.0.to_q.bias": torch.zeros(1)}, 1.0, SD15, {})


# -- the files


def test_save_lora_loses_nothing(tmp_path: Path) -> None:
    lora = _lora(_adapted("sd15"))
    save_lora(tmp_path / "toy.safetensors", lora, {"ss_network_dim": "3"})
    found = load_file(tmp_path / "toy.safetensors")
    assert found.keys() == lora.keys()
    assert all(torch.equal(found[key], lora[key]) and found[key].dtype == torch.float32 for key in lora)
    metadata = metadata_of(tmp_path / "toy.safetensors")
    assert metadata["ss_network_dim"] == "3"
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert os.listdir(tmp_path) == ["toy.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    lora = _lora(_adapted("sd15"))
    key = sorted(lora)[1]
    lora[key].flatten()[0] = value
    with pytest.raises(InputError, match="not finite"):
        save_lora(tmp_path / "toy.safetensors", lora, {})
    with pytest.raises(InputError, match="clip_l"):
        save_embedding(tmp_path / "toy.safetensors", {"clip_l": torch.full((1, 4), value)})
    assert os.listdir(tmp_path) == []


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    for name in ("1", "2"):
        save_lora(tmp_path / name, _lora(_adapted("sdxl")), {f"k{i}": str(i) for i in range(9)})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_save_embedding(tmp_path: Path) -> None:
    rows = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(3, 1280, dtype=torch.float64)}
    save_embedding(tmp_path / "toy_embedding.safetensors", rows, {"modelspec.title": "toy"})
    found = load_file(tmp_path / "toy_embedding.safetensors")
    assert {key: (tuple(value.shape), value.dtype) for key, value in found.items()} == {
        "clip_l": ((2, 768), torch.float32),
        "clip_g": ((3, 1280), torch.float32),
    }
    assert torch.equal(found["clip_l"], rows["clip_l"])


def test_diffusers_reads_the_embedding(tmp_path: Path) -> None:
    """As a textual inversion of the pipeline's own loader."""
    parts = tiny_components("sd15")
    rows = torch.randn(2, 32)
    save_embedding(tmp_path / "toy.safetensors", {"clip_l": rows})
    pipeline = _pipeline(parts)
    state = load_file(tmp_path / "toy.safetensors")
    pipeline.load_textual_inversion(state["clip_l"], token="zwxtoy")
    ids = pipeline.tokenizer.convert_tokens_to_ids(["zwxtoy", "zwxtoy_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], rows)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("class_word", ["toy", "red toy"])  # one learned row, and two
@pytest.mark.usefixtures("no_report")
def test_diffusers_draws_with_a_runs_files_as_the_trainer_does(tmp_path: Path, kind: str, class_word: str) -> None:
    """Text and network, with the lines of docs/start.md."""
    settings: dict[str, Any] = {"class_word": class_word, "steps": 2, "method": "dreambooth", "watch_drift": False}
    run(tiny_components(kind), output_dir=tmp_path, **settings)
    config, live = quick_config(**settings), tiny_components(kind)
    lora, rows = (load_file(tmp_path / f"{config.name}{end}.safetensors") for end in ("", "_embedding"))
    with personalized(live, lora, rows, config) as (conditioner, _), torch.no_grad():
        expected, drawn = conditioner.encode(["a photo of {subject} on grass"], tuned=True), _output(live.unet)

    pipeline = _pipeline(tiny_components(kind))
    pipeline.load_lora_weights(str(tmp_path), weight_name=f"{config.name}.safetensors")
    parts = {"clip_l": (pipeline.text_encoder, pipeline.tokenizer)}
    if kind == "sdxl":
        parts["clip_g"] = pipeline.text_encoder_2, pipeline.tokenizer_2
    assert rows.keys() == parts.keys() and len(rows["clip_l"]) == len(class_word.split())
    for key, (encoder, tokenizer) in parts.items():
        pipeline.load_textual_inversion(rows[key], token="zwxtoy", text_encoder=encoder, tokenizer=tokenizer)
    with torch.no_grad():
        asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        said = pipeline.encode_prompt("a photo of zwxtoy on grass", **asked)
    torch.testing.assert_close(said[0], expected.hidden, atol=1e-5, rtol=1e-5)
    if expected.pooled is not None:
        torch.testing.assert_close(said[2], expected.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_output(pipeline.unet), drawn, atol=2e-5, rtol=1e-5)

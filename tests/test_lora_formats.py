"""LoRA files of every program: names found on the model, formulas against peft's own layers, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from apt_train.errors import InputError
from apt_train.families.components import Components
from apt_train.families.file_words import FileWords
from apt_train.families.sd.layer_names import original_path, unet_names
from apt_train.lora_check.formulas import change, kind_of, rank_of, singular_values
from apt_train.lora_check.lora_file import LoraFile, read_lora, sorted_lora
from apt_train.lora_check.placing import place
from tests.lora_files import Layers, attention_paths, kohya, original, peft, processors, random_layers
from tests.tiny import tiny_components
from tests.tiny_checkpoint import tiny_modules, unet_to_ldm
from tests.toy_flow import toy_flow_components

# ---- formulas ----------------------------------------------------------------------------------------------------

LINEAR, CONV, SQUARE = nn.Linear(6, 8), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 6, 3)
KINDS: dict[str, tuple[Any, Any]] = {
    "LoRA": (LoraConfig(r=3, lora_alpha=2, target_modules=["0"]), LINEAR),
    "LoRA on a convolution": (LoraConfig(r=3, lora_alpha=2, target_modules=["0"]), CONV),
    "DoRA": (LoraConfig(r=3, lora_alpha=2, target_modules=["0"], use_dora=True), LINEAR),
    "DoRA on a convolution": (LoraConfig(r=3, lora_alpha=2, target_modules=["0"], use_dora=True), CONV),
    "DoRA on a square convolution": (LoraConfig(r=3, lora_alpha=2, target_modules=["0"], use_dora=True), SQUARE),
    "LoHa": (LoHaConfig(r=3, alpha=2, target_modules=["0"]), LINEAR),
    "LoHa on a convolution": (LoHaConfig(r=3, alpha=2, target_modules=["0"], use_effective_conv2d=True), CONV),
    "LoKr": (LoKrConfig(r=1, alpha=2, target_modules=["0"]), LINEAR),
    "LoKr in two parts": (LoKrConfig(r=1, alpha=2, target_modules=["0"], decompose_both=True), LINEAR),
    "LoKr on a convolution": (LoKrConfig(r=1, alpha=2, target_modules=["0"], use_effective_conv2d=True), CONV),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_what_pefts_layer_adds(kind: str) -> None:
    config, layer = KINDS[kind]
    base = layer.weight.detach().clone()
    model = nn.Sequential(copy.deepcopy(layer))
    inject_adapter_in_model(config, model)
    draws = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".default" in name:
            parameter.data = torch.randn(parameter.shape, generator=draws).abs() / 2
            tensors[f"layer.{name.removeprefix('0.').replace('.default', '')}"] = parameter.data.clone()
    (parts,) = sorted_lora({**tensors, "layer.alpha": torch.tensor(2.0)}, "file").layers.values()
    assert kind_of(parts) == kind.split()[0]
    ours = change(parts, base)
    wrapped: Any = model[0]
    wrapped.merge()
    torch.testing.assert_close(base + ours, wrapped.get_base_layer().weight.detach())


def test_a_middle_part_is_a_chain_of_three_convolutions() -> None:
    draws = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*s, generator=draws) for s in ((3, 6, 1, 1), (3, 3, 3, 3), (8, 3, 1, 1)))
    picture = torch.randn(1, 6, 5, 5, generator=draws)
    chained = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(picture, down), mid), up)
    added = change({"down": down, "mid": mid, "up": up}, torch.zeros(8, 6, 3, 3))
    torch.testing.assert_close(nn.functional.conv2d(picture, added), chained, rtol=1e-4, atol=1e-4)


def test_plain_differences_and_both_axes_of_a_magnitude() -> None:
    base, difference = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(change({"diff": difference}, base), difference)
    parts = {"up": torch.randn(4, 2), "down": torch.randn(2, 3)}
    for dora, dimension in ((torch.ones(4, 1), 1), (torch.ones(1, 3), 0)):
        merged = base + change({**parts, "dora": dora}, base)
        torch.testing.assert_close(merged.norm(dim=dimension), torch.ones(merged.shape[1 - dimension]))


def test_ranks_in_use_are_those_of_the_whole_change() -> None:
    parts = {"up": torch.randn(8, 4), "down": torch.randn(4, 6), "alpha": torch.tensor(2.0)}
    whole = torch.linalg.svdvals(parts["up"] @ parts["down"] * 0.5)
    values = singular_values(parts)
    assert values is not None
    torch.testing.assert_close(values, whole[:4], rtol=1e-4, atol=1e-5)
    assert rank_of(parts) == 4 and singular_values({"diff": torch.zeros(2, 2)}) is None


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "ssd1b", "koala", "koala_mid"])
def test_every_layer_has_its_name_in_the_original_code(kind: str) -> None:
    unet = tiny_modules(kind).unet
    theirs = {tensor.data_ptr(): name for name, tensor in unet_to_ldm(unet).items()}
    for name, tensor in unet.state_dict().items():
        path, _, end = name.rpartition(".")
        assert f"{original_path(path, unet.config)}.{end}" == theirs[tensor.data_ptr()]


def mixed(unet: nn.Module) -> Layers:
    """Attention, a feed-forward layer, convolutions of a residual block and of samplers, an embedding of time."""
    others = [
        "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv",
        "mid_block.resnets.1.conv2", "mid_block.attentions.0.proj_in", "up_blocks.0.resnets.0.time_emb_proj",
        "conv_in", "conv_out", "time_embedding.linear_2", "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    ]  # fmt: skip
    return random_layers(unet, [*attention_paths(unet), *others])


FORMATS: dict[str, Callable[[Layers, nn.Module], dict[str, Tensor]]] = {
    "kohya": lambda layers, unet: kohya(layers),
    "kohya, original blocks": lambda layers, unet: kohya(original(layers, unet)),
    "LyCORIS": lambda layers, unet: kohya(layers, prefix="lycoris_"),
    "diffusers": lambda layers, unet: peft(layers),
    "peft": lambda layers, unet: peft(layers, "base_model.model."),
    "ComfyUI": lambda layers, unet: peft(original(layers, unet), "diffusion_model."),
    "OMI": lambda layers, unet: peft(original(layers, unet), "unet."),
}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_means_the_same_in_every_format(kind: str, form: str) -> None:
    parts = tiny_components(kind)
    layers = mixed(parts.unet)
    found = place(sorted_lora(FORMATS[form](layers, parts.unet), "file"), parts)
    assert found.unplaced == found.unfit == []
    assert {item.path for item in found.placed} == set(layers)
    for item in found.placed:
        down, up = layers[item.path]
        weight = item.layer.weight
        assert isinstance(weight, Tensor)
        torch.testing.assert_close(item.changes(weight, "weight"), (up.flatten(1) @ down.flatten(1)).view_as(weight))


def test_diffusers_older_processors_are_read() -> None:
    parts = tiny_components()
    layers = random_layers(parts.unet, attention_paths(parts.unet))
    found = place(sorted_lora(processors(layers), "file"), parts)
    assert {item.path for item in found.placed} == set(layers) and found.unplaced == []


@pytest.mark.parametrize(
    ("kind", "leads"),
    [("sd15", {"lora_te_text_model_": 1, "lora_te1_text_model_": 1}),
     ("sdxl", {"lora_te1_text_model_": 1, "lora_te2_text_model_": 2})],
)  # fmt: skip
def test_text_encoders_are_found_by_their_number(kind: str, leads: dict[str, int]) -> None:
    parts = tiny_components(kind)
    layer, tower = "encoder.layers.1.mlp.fc1", ""
    for lead, number in leads.items():
        encoder = parts.text_encoders[number - 1].model
        tower = "" if hasattr(encoder, "encoder") else "text_model."
        pair = random_layers(encoder, [tower + layer])[tower + layer]
        (item,) = place(sorted_lora(kohya({layer: pair}, prefix=lead), "file"), parts).placed
        assert (item.part, item.layer) == (f"text encoder {number}", encoder.get_submodule(tower + layer))
    own = ("text_encoder.", "clip_l.", "clip_l.transformer.") if kind == "sd15" else ("text_encoder_2.", "clip_g.")
    for lead in own:
        for name in (f"text_model.{layer}", layer):  # transformers 5 has the shorter one
            (item,) = place(sorted_lora(peft({name: pair}, lead), "file"), parts).placed
            assert item.path == tower + layer


def test_biases_and_norms_of_comfyui_are_placed() -> None:
    parts = tiny_components()
    keys = {"diffusion_model.out.2.bias.diff": torch.ones(4), "lora_unet_conv_norm_out.w_norm": torch.ones(16)}
    placed = {item.path: item for item in place(sorted_lora(keys, "file"), parts).placed}
    bias, norm = placed["conv_out"], placed["conv_norm_out"]
    changed, weighted = bias.changes(torch.zeros(4), "bias"), norm.changes(torch.zeros(16), "weight")
    assert changed is not None and torch.equal(changed, torch.ones(4))
    assert bias.changes(torch.zeros(4, 16, 3, 3), "weight") is None
    assert weighted is not None and torch.equal(weighted, torch.ones(16))


def test_no_two_layers_share_a_name() -> None:
    unet = tiny_modules("sdxl").unet
    names = unet_names(unet)
    assert len(set(names.values())) == sum(1 for _, m in unet.named_modules() if [*m.parameters(recurse=False)])


# ---- what is refused or left out ---------------------------------------------------------------------------------


def refused(tensors: dict[str, Tensor], parts: Components) -> str:
    with pytest.raises(InputError) as caught:
        place(sorted_lora(tensors, "stranger.safetensors"), parts)
    return str(caught.value)


def test_a_lora_of_another_family_is_one_sentence() -> None:
    sd15, sdxl = tiny_components(), tiny_components("sdxl")
    strange = refused(kohya(original(random_layers(sdxl.unet, attention_paths(sdxl.unet)), sdxl.unet)), sd15)
    assert strange.startswith("stranger.safetensors is made for another model: too few ")
    flux = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{end}.weight": torch.zeros(2, 2) for end in ("up", "down")}
    assert "is made for FLUX" in refused(flux, sd15)
    wide = random_layers(nn.ModuleDict({"k": nn.Linear(2048, 8)}), ["k"])["k"]
    assert "is made for SDXL" in refused(kohya({"down_blocks.7.attn2.to_k": wide}), sd15)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_lora_of_numbers_without_a_shape_is_one_sentence(shape: tuple[int, ...]) -> None:
    parts = tiny_components()
    path = next(path for path in attention_paths(parts.unet) if path.endswith("attn2.to_k")).replace(".", "_")
    for keys in (("lora_down.weight", "lora_up.weight"), ("lokr_w1", "lokr_w2")):
        lora = {f"lora_unet_{path}.{key}": torch.ones(shape) for key in keys}
        with pytest.raises(InputError):
            place(sorted_lora(lora, "odd"), parts)


def test_layers_that_do_not_fit_are_named_and_left_out() -> None:
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    first, second, third = [key for key in lora if key.endswith("lora_down.weight")][:3]
    lora[first] = lora[first][:, :3]
    lora[second] = torch.full_like(lora[second], float("nan"))
    del lora[third]
    file = sorted_lora(lora, "file")
    found = place(file, parts)
    assert (found.unfit, found.broken) == ([first.partition(".")[0]], [second.partition(".")[0]])
    assert sorted(file.unread) == [third.replace("lora_down.weight", end) for end in ("alpha", "up")]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["LoRA", "difference"])
def test_floats_of_any_size_are_read_as_the_numbers_they_are(dtype: torch.dtype, kind: str) -> None:
    parts = tiny_components()
    if kind == "LoRA":
        lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    else:
        lora = {"lora_unet_conv_in.diff": torch.randn(16, 4, 3, 3), "lora_unet_conv_in.diff_b": torch.randn(16)}
    small = {key: tensor.to(dtype) for key, tensor in lora.items()}
    placed = place(sorted_lora(small, "file"), parts).placed
    plain = place(sorted_lora({key: tensor.float() for key, tensor in small.items()}, "file"), parts).placed
    assert len(placed) == len(plain) > 0 and [item.rank for item in placed] == [item.rank for item in plain]
    for one, other in zip(placed, plain, strict=True):
        for of in ("weight", "bias"):
            base = getattr(one.layer, of)
            ours, theirs = (None if base is None else item.changes(base, of) for item in (one, other))
            if ours is None or theirs is None:
                assert ours is theirs
            else:
                assert torch.equal(ours, theirs)
        if kind == "LoRA":
            ours, theirs = singular_values(one.parts), singular_values(other.parts)
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_numbers_that_are_packed_or_no_floats_are_named_and_left_out(dtype: torch.dtype) -> None:
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    key = next(key for key in lora if key.endswith("lora_up.weight"))
    file = sorted_lora({**lora, key: lora[key].to(dtype)}, "file")
    layer = key.partition(".")[0]
    assert sorted(file.unread) == [f"{layer}.{part}" for part in ("alpha", "down", "up")]
    place(file, parts)
    with pytest.raises(InputError, match="nothing that can be read as a LoRA"):
        sorted_lora({key: tensor.to(dtype) for key, tensor in lora.items()}, "file")


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.ones(0), torch.ones((), dtype=torch.complex64)])
@pytest.mark.parametrize("part", ["diff", "lora"])
def test_an_alpha_is_one_number_or_its_layer_is_left_out(alpha: Tensor, part: str) -> None:
    """Also where nothing is scaled by it."""
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    odd = {"lora_unet_conv_in.alpha": alpha}
    if part == "diff":
        odd["lora_unet_conv_in.diff"] = torch.zeros(16, 4, 3, 3)
    else:
        odd |= kohya(random_layers(parts.unet, ["conv_in"])) | odd
    file = sorted_lora({**lora, **odd}, "file")
    assert (
        "conv_in" not in [item.path for item in place(file, parts).placed] and "lora_unet_conv_in.alpha" in file.unread
    )


@pytest.mark.parametrize(
    ("said", "strength"),
    [
        ({"r": 16, "lora_alpha": 4, "use_rslora": False}, "0.25"),
        ({"r": 4, "lora_alpha": 4, "use_rslora": True}, "2"),
        ({"r": 4, "lora_alpha": 4}, ""),
        ({"r": 0, "lora_alpha": 4}, ""),
        ({"r": 10**400, "lora_alpha": 2 * 10**400}, ""),
        ({"r": "4", "lora_alpha": []}, ""),
        ({}, ""),
    ],
)
def test_an_alpha_that_diffusers_alone_reads_is_told(tmp_path: Path, said: dict[str, Any], strength: str) -> None:
    """Its training scripts write alpha and rank into the metadata alone."""
    layers = random_layers(tiny_components().unet, ["conv_in"])
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in said.items()})}
    for name, lora, is_told in (("peft", peft(layers), bool(strength)), ("kohya", kohya(layers), False)):
        save_file(lora, tmp_path / f"{name}.safetensors", metadata)
        notes = read_lora(tmp_path / f"{name}.safetensors").notes
        assert [f"there strength {strength} is what was trained" in note for note in notes] == [True] * is_told


@pytest.mark.parametrize("text", ["", "[]", "5", "{" * 99_999])
def test_metadata_that_are_none_say_nothing(text: str) -> None:
    assert LoraFile("x", {}, metadata={"lora_adapter_metadata": text}).notes == LoraFile("x", {}).notes == []


def test_an_alpha_may_be_a_whole_number_or_a_list_of_one() -> None:
    parts = tiny_components()
    for alpha in (torch.tensor(2), torch.tensor([2.0])):
        lora = kohya(random_layers(parts.unet, ["conv_in"])) | {"lora_unet_conv_in.alpha": alpha}
        found = place(sorted_lora(lora, "file"), parts)
        assert (found.ranks, found.alphas) == ([4], [2.0])


def test_a_family_says_what_its_layers_are_called() -> None:
    """Names that only its own files have; what it does not say goes by the paths."""
    parts = toy_flow_components()
    layers = random_layers(parts.unet, ["blocks.0.to_q", "blocks.2.to_v"])
    own = {f"flow.{path.replace('blocks.', 'block-')}": path for path in layers}
    lora = peft({name: layers[path] for name, path in own.items()}, "")
    assert "is made for a rival" in refused(
        lora, replace(parts, family=replace(parts.family, file_words=FileWords(model_of=lambda _: "a rival")))
    )
    words = FileWords(network_names=lambda network: own)
    known = replace(parts, family=replace(parts.family, file_words=words))
    for model, file in ((known, lora), (parts, kohya(layers)), (parts, peft(layers))):
        found = place(sorted_lora(file, "file"), model)
        assert {item.path for item in found.placed} == set(layers)


def test_a_lora_that_broke_in_training_is_told_as_such() -> None:
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    broken = {key: tensor * float("nan") if "lora_up" in key else tensor for key, tensor in lora.items()}
    assert "holds layers with values that are not numbers (32 of 32)" in refused(broken, parts)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.ckpt", b"PK\x03\x04", "is a pickle"),
        ("a.safetensors", b"", "is empty"),
        ("a.txt", b"x", "is not a .safetensors"),
    ],
)
def test_what_is_no_lora_file_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_lora(tmp_path / name)


def test_a_checkpoint_is_no_lora(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.out.2.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="nothing that can be read as a LoRA"):
        read_lora(tmp_path / "model.safetensors")


def test_a_learned_word_beside_the_file_is_found(tmp_path: Path) -> None:
    save_file({"lora_unet_x.diff": torch.zeros(1)}, tmp_path / "toy.safetensors", {"apt_class_word": "toy"})
    assert read_lora(tmp_path / "toy.safetensors").embedding is None
    save_file({"clip_l": torch.zeros(1, 32)}, tmp_path / "toy_embedding.safetensors")
    found = read_lora(tmp_path / "toy.safetensors")
    assert found.embedding == tmp_path / "toy_embedding.safetensors" and found.metadata == {"apt_class_word": "toy"}


def test_a_learned_word_is_found_by_the_trigger_where_the_lora_alone_was_renamed(tmp_path: Path) -> None:
    """One named like the LoRA counts before it: of two runs of one subject the words have the same trigger."""
    trigger = {"modelspec.trigger_phrase": "embedding:toy_embedding"}
    save_file({"lora_unet_x.diff": torch.zeros(1)}, tmp_path / "best.safetensors", trigger)
    for name in ("toy_embedding", "best_embedding"):
        save_file({"clip_l": torch.zeros(1, 32)}, tmp_path / f"{name}.safetensors")
        assert read_lora(tmp_path / "best.safetensors").embedding == tmp_path / f"{name}.safetensors"


@pytest.mark.parametrize("name", ["../out", "a\0b", 300 * "x", "lora"])
def test_a_trigger_leads_to_no_other_folder_and_not_to_the_lora_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.safetensors").touch()
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "lora.safetensors"
    save_file({"lora_unet_x.diff": torch.zeros(1)}, file, {"modelspec.trigger_phrase": f"embedding:{name}"})
    assert read_lora(file).embedding is None


def test_a_lora_whose_words_name_would_be_too_long_is_read(tmp_path: Path) -> None:
    file = tmp_path / f"{240 * 'n'}.safetensors"
    save_file({"lora_unet_x.diff": torch.zeros(1)}, file)
    assert read_lora(file).embedding is None

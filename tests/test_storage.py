"""Base weights in fewer bits: the prior is the same rounded base, runs train, resume and export on it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from apt_train.adapter import add_adapter
from apt_train.adapter_kinds import KINDS
from apt_train.config import AdapterConfig, Storage
from apt_train.errors import InputError
from apt_train.events import PreviewEvent
from apt_train.families.components import token_embedding
from apt_train.families.storage import STORAGES, stored
from apt_train.training.live_bytes import weight_bytes
from tests.test_adapter import inputs_of, output
from tests.test_adapter_kinds import Products
from tests.test_room import planned
from tests.tiny import tiny_components
from tests.training import Recorder, quick_config, run, same_weights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FEW: dict[str, Any] = {"watch_drift": False, "snapshot_every": 2}
LOSES = {"fp8": 0.03, "int8": 0.015, "nf4": 0.1}  # at most, of a normal distribution's deviation, root mean square
SIZES = {"fp8": 1.01, "int8": 1.01, "nf4": 0.54}  # bytes per weight of a layer as large as real ones
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")
each = pytest.mark.parametrize("storage", STORAGES)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def test_what_a_run_can_be_set_to_is_what_there_is() -> None:
    assert get_args(Storage) == ("full", *STORAGES) and STORAGES.keys() == LOSES.keys() == SIZES.keys()


@each
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_off_the_adapter_is_the_rounded_base_to_the_bit(kind: str, dtype: torch.dtype, storage: str) -> None:
    unet, inputs = tiny_components(kind).unet, inputs_of(kind, dtype=dtype)
    shapes = {name: tensor.shape for name, tensor in unet.named_parameters()}
    numbered = sum(shape.numel() for name, shape in shapes.items() if any(c.isdigit() for c in name.split(".")))
    assert numbered > 0.8 * sum(shape.numel() for shape in shapes.values())
    with torch.no_grad():
        with stored(unet, storage, dtype):
            left = {name for name, tensor in unet.named_parameters() if tensor.itemsize > 1 and tensor.dim() > 1}
            assert not {name for name in left if name in shapes and any(c.isdigit() for c in name.split("."))}
            adapter = add_adapter(unet, AdapterConfig(rank=4, alpha=4.0))
            for parameter in adapter.parameters.values():
                parameter.add_(0.1)
            with adapter.disabled():
                found = output(unet, inputs)
            assert not torch.equal(output(unet, inputs), found)
            adapter.remove()
        assert {name: tensor.shape for name, tensor in unet.named_parameters()} == shapes
        assert {tensor.dtype for tensor in unet.parameters()} == {dtype}
        assert torch.equal(output(unet, inputs), found)


@each
@pytest.mark.parametrize("place", [0, 1])
def test_a_text_encoder_gives_and_hands_back_what_the_rounded_one_does(place: int, storage: str) -> None:
    encoder = tiny_components("sdxl").text_encoders[place].model.requires_grad_(False)
    ids = torch.tensor([[2, 3, 4, 5]])

    def read() -> tuple[Tensor, Tensor]:
        embeddings = token_embedding(encoder).weight.requires_grad_()
        hidden = encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        (gradient,) = torch.autograd.grad(hidden.square().sum(), embeddings)
        return hidden.detach(), gradient

    wide = read()
    with stored(encoder, storage, torch.float32):
        inside = read()
    assert not torch.equal(inside[0], wide[0])
    for one, other in zip(inside, read(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@each
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_backward_pass_multiplies_by_the_same_weights(dtype: torch.dtype, storage: str) -> None:
    """And in the type of the input."""
    for layer, x in (
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 9, 9)),
        (nn.Linear(5, 7, bias=False), torch.randn(2, 3, 5)),
    ):
        module, x = nn.Sequential(layer).requires_grad_(False), x.to(dtype).requires_grad_()
        with stored(module, storage, dtype):
            first = module(x)
            (found,) = torch.autograd.grad(first.square().sum(), x)
        second = module(x)
        (plain,) = torch.autograd.grad(second.square().sum(), x)
        assert torch.equal(first, second)
        torch.testing.assert_close(found, plain)


@each
@pytest.mark.parametrize("more", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_a_convolution_that_pads_in_another_way_is_left_as_it_is(more: dict[str, Any], storage: str) -> None:
    module, x = nn.Sequential(nn.Conv2d(4, 6, 3, **more)).requires_grad_(False), torch.randn(1, 4, 8, 8)
    (plain,) = torch.autograd.grad(module(x.requires_grad_()).square().sum(), x)
    with stored(module, storage, torch.float32):
        (found,) = torch.autograd.grad(module(x).square().sum(), x)
    assert torch.equal(found, plain)


@each
def test_only_what_is_stored_is_kept_for_the_backward_pass(storage: str) -> None:
    """Kept wide for it, a weight would take as much as before."""
    module = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False)
    kept: list[int] = []
    with stored(module, storage, torch.float32):
        own = sum(tensor.nbytes for name, tensor in module.named_parameters() if "bias" not in name)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one):
            module(torch.randn(1, 64, requires_grad=True))
    assert 0 < sum(kept) == own < 64 * 64 * 4


@each
def test_a_weight_takes_as_many_bytes_as_are_said(storage: str) -> None:
    module = nn.Sequential(nn.Linear(640, 640, bias=False)).requires_grad_(False)
    with stored(module, storage, torch.bfloat16):
        assert SIZES[storage] - 0.03 < weight_bytes(module.parameters()) / 640**2 < SIZES[storage]


@each
@pytest.mark.parametrize("shape", [(320, 96), (31, 7), (24, 5, 3, 3)])
def test_rounding_loses_as_little_as_is_said(shape: tuple[int, ...], storage: str) -> None:
    """Also where a block of weights is not filled."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 50
    codec = STORAGES[storage]
    off = codec.decode(weight.shape, torch.float32, *codec.encode(weight)) - weight
    assert 0 < off.square().mean().sqrt() < LOSES[storage] / 50


def rows() -> Tensor:
    """Eight rows of 64 that differ a thousandfold, one of them all zeros."""
    draws = torch.Generator().manual_seed(0)
    return torch.randn(8, 64, generator=draws) * torch.tensor([1e3, 1, 1e-1, 1e-2, 1e-3, 3e-4, 7, 0.0])[:, None]


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_loses_no_more_than_another_and_zeros_stay(dtype: torch.dtype, storage: str) -> None:
    layer, before = nn.Linear(64, 8), rows()
    layer.weight.data = before.clone()
    module = nn.Sequential(layer.requires_grad_(False))
    with stored(module, storage, dtype):
        pass
    once = layer.weight.detach().float()
    assert torch.equal(once[7], torch.zeros(64))
    off = (once - before).square().mean(dim=1).sqrt() / before.square().mean(dim=1).sqrt()
    assert off[:7].max() < 1.2 * LOSES[storage]


@each
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 1e-3, 3e-6])
def test_rounding_again_changes_nothing(scale: float, dtype: torch.dtype, storage: str) -> None:
    """In the same type, and another type's values are those of a fresh model.

    Half precision ends at 6e-8, which fp8's smallest values do not.
    """
    layer = nn.Linear(64, 8)
    module = nn.Sequential(layer.requires_grad_(False))

    def rounded(weight: Tensor, *dtypes: torch.dtype) -> Tensor:
        layer.weight.data = weight.clone()
        for one in dtypes:
            with stored(module, storage, one):
                pass
        return layer.weight.detach()

    once = rounded(rows() * scale, dtype)
    assert torch.equal(rounded(once, dtype), once)
    for other in DTYPES:
        if storage != "fp8" or dtype != torch.float16 or scale == 1:
            assert torch.equal(rounded(once, other), rounded(rows() * scale, other))


@each
def test_after_an_error_the_module_is_a_plain_one(storage: str) -> None:
    unet = tiny_components().unet
    before = [(set(vars(part)), set(part._buffers), set(part._parameters)) for part in unet.modules()]
    with pytest.raises(KeyError), stored(unet, storage, torch.float32):
        raise KeyError
    assert [(set(vars(part)), set(part._buffers), set(part._parameters)) for part in unet.modules()] == before


RUNS: dict[str, dict[str, Any]] = {
    "learned": {},
    "word, bf16, previews": {"identifier_mode": "word", "precision": "bf16", "preview_every": 2},
    "t-lora, feed forward": {"method": "tlora", "min_rank": 1, "targets": "attention+ff"},
}


@each
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_it_trains_draws_resumes_and_exports(name: str, storage: str, tmp_path: Path) -> None:
    few: dict[str, Any] = {**FEW, **RUNS[name], "snapshot_every": 1, "steps": 2}
    seen = Recorder()
    whole = run(**few, base_storage=storage, output_dir=tmp_path / "whole", on_event=seen)
    run(**{**few, "steps": 1}, base_storage=storage, output_dir=tmp_path / "parts")
    assert same_weights(run(**few, base_storage=storage, output_dir=tmp_path / "parts", resume=True), whole)
    full = run(**few)
    assert whole.lora.keys() == full.lora.keys() and not same_weights(whole, full)
    assert (tmp_path / "whole" / "toy_subject.safetensors").is_file()
    assert any(isinstance(event, PreviewEvent) for event in seen.events) == ("preview_every" in few)


@each
def test_recomputed_it_gives_the_same_gradients(storage: str) -> None:
    plain, recomputed = (run(**FEW, base_storage=storage, steps=1, gradient_checkpointing=on) for on in (False, True))
    for key, tensor in plain.lora.items():
        torch.testing.assert_close(recomputed.lora[key], tensor, rtol=1e-3, atol=1e-4)


@each
def test_in_bf16_all_products_stay_in_bf16(storage: str) -> None:
    unet = tiny_components().unet
    with stored(unet, storage, torch.bfloat16):
        add_adapter(unet, AdapterConfig(rank=4, alpha=4.0))
        with Products() as seen:
            output(unet.train(), inputs_of("sd15", dtype=torch.bfloat16)).float().square().mean().backward()
    assert seen.types == {torch.bfloat16}


@each
def test_a_model_that_was_rounded_is_trained_on_again_but_in_no_other_way(storage: str) -> None:
    parts, few = tiny_components(), {**FEW, "steps": 1}
    first = run(parts, **few, base_storage=storage)
    assert same_weights(run(parts, **few, base_storage=storage), first)
    for other in {"full", *STORAGES} - {storage}:
        with pytest.raises(InputError, match=f"^An earlier run has rounded this model to {storage}.*load the checkpo"):
            run(parts, **few, base_storage=other)


@each
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"precision": "fp32"}),
        ({}, {"base_storage": "full"}),
        ({"base_storage": "full"}, {}),
    ],
)
def test_a_model_rounded_in_one_way_is_not_trained_in_another(
    first: dict[str, Any], second: dict[str, Any], storage: str
) -> None:
    """What a storage leaves out, norms and embeddings, is rounded to the run's precision all the same."""
    parts, few = tiny_components(), {**FEW, "steps": 1, "precision": "bf16", "base_storage": storage}
    run(parts, **{**few, **first})
    with pytest.raises(InputError, match="^An earlier run has rounded .*: load the checkpoint again.$"):
        run(parts, **{**few, **second})


@each
def test_where_nothing_but_the_layers_was_rounded_another_precision_is_as_on_a_fresh_model(storage: str) -> None:
    parts, less = tiny_components(), {**FEW, "base_storage": storage, "steps": 1, "precision": "bf16"}
    run(parts, **{**less, "precision": "fp32"})
    assert same_weights(run(parts, **less), run(**less))


@each
def test_a_kind_that_reads_the_base_is_refused_by_name(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "other", replace(KINDS["lora"], reads_base=True))
    with pytest.raises(InputError, match=f"^base_storage is {storage}: other reads the base's weights"):
        quick_config(kind="other", base_storage=storage)


@each
def test_a_dora_is_refused(storage: str) -> None:
    with pytest.raises(InputError, match=f"^base_storage is {storage}: dora .* choose full, or another kind.$"):
        run(kind="dora", base_storage=storage)


def test_each_is_another_run_and_runs_from_before_stay_the_same() -> None:
    digests = {planned().digest, *(planned(base_storage=storage).digest for storage in STORAGES)}
    assert len(digests) == 1 + len(STORAGES)
    assert "base_storage" not in planned().config.identity()


@each
def test_the_estimate_counts_what_a_run_on_it_holds(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_train.training.estimate.SMALL", 0)
    full, small = planned(precision="bf16"), planned(precision="bf16", base_storage=storage)
    parts = small.components
    models = [parts.unet, *(encoder.model for encoder in parts.text_encoders)]
    assert full.memory is not None and small.memory is not None
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(stored(model, storage, torch.bfloat16))
        held = sum(weight_bytes(model.parameters()) for model in models)
    wide = sum(weight_bytes(model.parameters()) for model in models)
    assert full.memory.weights - small.memory.weights == wide - held != 0

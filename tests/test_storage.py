"""Base weights in one byte each: the prior is the same rounded base, runs train, resume and export on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apt_train.adapter import add_adapter
from apt_train.adapter_kinds import KINDS
from apt_train.errors import InputError
from apt_train.families.storage import FP8, stored_in_fp8
from tests.test_adapter import inputs_of, output
from tests.test_adapter_kinds import Products
from tests.test_room import planned
from tests.tiny import tiny_components
from tests.training import Recorder, quick_config, run, same_weights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FEW: dict[str, Any] = {"base_storage": "fp8", "watch_drift": False, "snapshot_every": 2}
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_off_the_adapter_is_the_rounded_base_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    unet, inputs = tiny_components(kind).unet, inputs_of(kind, dtype=dtype)
    with torch.no_grad():
        with stored_in_fp8(unet, dtype):
            stored = [p for p in unet.parameters() if p.dtype == FP8]
            assert sum(p.numel() for p in stored) > 0.8 * sum(p.numel() for p in unet.parameters())
            adapter = add_adapter(unet, rank=4, alpha=4.0)
            for parameter in adapter.parameters.values():
                parameter.add_(0.1)
            with adapter.disabled():
                found = output(unet, inputs)
            assert not torch.equal(output(unet, inputs), found)
            adapter.remove()
        assert not any(p.dtype == FP8 for p in unet.parameters())
        assert torch.equal(output(unet, inputs), found)


def test_the_backward_pass_multiplies_by_the_same_weights() -> None:
    """And in the type of the input."""
    for layer, x in (
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9, 9)),
        (nn.Linear(5, 7, bias=False), torch.randn(2, 3, 5)),
    ):
        module, x = nn.Sequential(layer).requires_grad_(False), x.requires_grad_()
        with stored_in_fp8(module, torch.float32):
            first = module(x)
            (stored,) = torch.autograd.grad(first.square().sum(), x)
        second = module(x)
        (plain,) = torch.autograd.grad(second.square().sum(), x)
        assert torch.equal(first, second)
        torch.testing.assert_close(stored, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_loses_little_and_only_once(dtype: torch.dtype) -> None:
    """Half of the last of four bits, also where rows differ a thousandfold; zeros and large values stay."""
    draws = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 8)
    layer.weight.data = (
        torch.randn(8, 64, generator=draws) * torch.tensor([1e3, 1, 1e-1, 1e-2, 1e-3, 3e-4, 7, 0.0])[:, None]
    )
    module, before = nn.Sequential(layer.requires_grad_(False)), layer.weight.clone()
    with stored_in_fp8(module, dtype):
        pass
    once = weights(module)["0.weight"]
    off = (once.float() - before).abs() / before.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    assert off.max() < 2**-4 and torch.equal(once[7], torch.zeros_like(once[7]))
    relative = ((once.float() - before).abs() / before.abs())[:5]
    assert relative.median() < 2**-5
    with stored_in_fp8(module, dtype):
        pass
    assert torch.equal(weights(module)["0.weight"], once)


def test_after_an_error_the_module_is_a_plain_one() -> None:
    unet = tiny_components().unet
    names = set(dict(unet.named_buffers()))
    with pytest.raises(KeyError), stored_in_fp8(unet, torch.float32):
        raise KeyError
    assert set(dict(unet.named_buffers())) == names
    assert not any("forward" in vars(module) for module in unet.modules())


@pytest.mark.parametrize("settings", [{}, {"identifier_mode": "word", "precision": "bf16"}])
def test_a_run_on_it_trains_resumes_and_exports(settings: dict[str, Any], tmp_path: Path) -> None:
    recorder = Recorder()
    whole = run(**FEW, **settings, output_dir=tmp_path / "whole", on_event=recorder)
    run(**FEW, **settings, output_dir=tmp_path / "parts", steps=2)
    assert same_weights(run(**FEW, **settings, output_dir=tmp_path / "parts", resume=True), whole)
    full = run(**{**FEW, "base_storage": "full"}, **settings)
    assert whole.lora.keys() == full.lora.keys() and not same_weights(whole, full)
    assert (tmp_path / "whole" / "toy_subject.safetensors").is_file()


def test_recomputed_it_gives_the_same_gradients() -> None:
    plain, recomputed = (run(**FEW, steps=1, gradient_checkpointing=on) for on in (False, True))
    for key, tensor in plain.lora.items():
        torch.testing.assert_close(recomputed.lora[key], tensor, rtol=1e-3, atol=1e-4)


def test_in_bf16_all_products_stay_in_bf16() -> None:
    unet = tiny_components().unet
    with stored_in_fp8(unet, torch.bfloat16):
        add_adapter(unet, rank=4, alpha=4.0)
        with Products() as seen:
            output(unet.train(), inputs_of("sd15", dtype=torch.bfloat16)).float().square().mean().backward()
    assert seen.types == {torch.bfloat16}


def test_a_model_that_was_rounded_is_not_trained_in_full() -> None:
    parts = tiny_components()
    first = run(parts, **FEW, steps=1)
    assert same_weights(run(parts, **FEW, steps=1), first)
    with pytest.raises(InputError, match="load the checkpoint again"):
        run(parts, steps=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"precision": "bf16"}, {"precision": "fp32"}),
        ({"precision": "bf16"}, {"precision": "bf16", "base_storage": "full"}),
        ({"precision": "bf16", "base_storage": "full"}, {"precision": "bf16"}),
    ],
)
def test_a_model_rounded_in_one_way_is_not_trained_in_another(first: dict[str, Any], second: dict[str, Any]) -> None:
    """What fp8 leaves out, norms and embeddings, is rounded to the run's precision all the same."""
    parts = tiny_components()
    run(parts, **{**FEW, "steps": 1, **first})
    with pytest.raises(InputError, match="^An earlier run has rounded .*: load the checkpoint again.$"):
        run(parts, **{**FEW, "steps": 1, **second})


def test_where_nothing_but_the_layers_was_rounded_another_precision_is_as_on_a_fresh_model() -> None:
    parts, less = tiny_components(), {**FEW, "steps": 1, "precision": "bf16"}
    run(parts, **{**less, "precision": "fp32"})
    assert same_weights(run(parts, **less), run(**less))


def test_a_kind_that_reads_the_base_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "other", replace(KINDS["lora"], reads_base=True))
    with pytest.raises(InputError, match="^base_storage is fp8: other reads the base's weights"):
        quick_config(kind="other", base_storage="fp8")


def test_a_dora_is_refused() -> None:
    with pytest.raises(InputError, match="^base_storage is fp8: dora .* choose full, or another kind.$"):
        run(kind="dora", **FEW)


def test_it_is_another_run_and_runs_from_before_stay_the_same() -> None:
    assert planned().digest != planned(base_storage="fp8").digest
    assert "base_storage" not in planned().config.identity()


def test_the_estimate_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_train.training.estimate.SMALL", 0)
    full, small = planned().memory, planned(base_storage="fp8").memory
    assert full is not None and small is not None and small.weights < 0.6 * full.weights

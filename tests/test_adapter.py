"""The LoRA on the UNet: off is the base to the bit, removed leaves nothing, ranks by timestep."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from apt_train.adapter import Adapter, RankByTimestep, add_adapter
from apt_train.config import AdapterConfig, AdapterTargets
from apt_train.families.levels import even_levels
from apt_train.families.sd.network import StableDiffusion
from apt_train.rng import generator
from apt_train.training.capture import Capture
from benchmarks.memory import published
from tests.tiny import tiny_components, unet_of

KINDS = ("sd15", "sdxl")


def inputs_of(kind: str, count: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    draws = generator("adapter inputs", kind)
    width = 64 if kind == "sdxl" else 32
    extra = {"text_embeds": torch.randn(count, 32, generator=draws).to(dtype), "time_ids": torch.ones(count, 6)}
    return {
        "sample": torch.randn(count, 4, 16, 16, generator=draws).to(dtype),
        "timestep": torch.tensor([100, 900])[:count],
        "encoder_hidden_states": torch.randn(count, 16, width, generator=draws).to(dtype),
        "added_cond_kwargs": extra if kind == "sdxl" else None,
    }


def output(unet: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return unet(**inputs).sample


def tuned_unet(kind: str = "sd15", dtype: torch.dtype = torch.float32, **settings: Any) -> UNet2DConditionModel:
    """A UNet whose LoRA does something: lora_B is filled as after training."""
    parts = tiny_components(kind)
    parts.unet.to(dtype)
    values: dict[str, Any] = {"rank": 4, "alpha": 2.0, **settings}
    add_adapter(parts.unet, AdapterConfig(**values), seed=1)
    fill(parts.unet)
    return unet_of(parts)


def fill(unet: nn.Module) -> None:
    draws = generator("filled")
    with torch.no_grad():
        for name, parameter in Adapter(unet).parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


# On, off, away


def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    unet, inputs = tiny_components(kind).unet, inputs_of(kind)
    with torch.no_grad():
        before = output(unet, inputs)
        add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), seed=0)
        assert torch.equal(output(unet, inputs), before)


def test_off_is_the_base_to_the_bit_after_training_steps(kind: str) -> None:
    base, unet, inputs = tiny_components(kind).unet, tiny_components(kind).unet, inputs_of(kind)
    add_adapter(unet, AdapterConfig(rank=4, alpha=4.0, dropout=0.1), seed=0)
    unet.train()
    optimizer = torch.optim.AdamW(Adapter(unet).parameters.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        output(unet, inputs).square().mean().backward()
        optimizer.step()
    unet.eval()
    with torch.no_grad():
        expected = output(base, inputs)
        with Adapter(unet).disabled():
            assert torch.equal(output(unet, inputs), expected)
        assert not torch.equal(output(unet, inputs), expected)
    weights = {name.replace("base_layer.", ""): p for name, p in unet.named_parameters() if ".apt." not in name}
    assert weights.keys() == dict(base.named_parameters()).keys()
    assert all(torch.equal(weights[name], parameter) for name, parameter in base.named_parameters())


def test_removing_leaves_the_module_as_it_was(kind: str) -> None:
    parts, inputs = tiny_components(kind), inputs_of(kind)
    unet, before = parts.unet, copy.deepcopy(parts.unet)
    modules = dict(unet.named_modules())
    add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), targets=parts.family.adapted("attention+ff"), seed=0)
    fill(unet)
    Adapter(unet).remove()
    assert {name: id(module) for name, module in unet.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert unet.__dict__.keys() == before.__dict__.keys()
    assert repr(unet) == repr(before)
    state = unet.state_dict()
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())
    with torch.no_grad():
        assert torch.equal(output(unet, inputs), output(before, inputs))
    add_adapter(unet, AdapterConfig(rank=2, alpha=2.0), seed=0)  # and another run may begin
    assert all(2 in p.shape for p in Adapter(unet).parameters.values())


def test_the_adapter_is_on_again_after_an_exception() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    with torch.no_grad():
        tuned = output(unet, inputs)
        with pytest.raises(RuntimeError, match="stop"), Adapter(unet).disabled():
            raise RuntimeError("stop")
        assert torch.equal(output(unet, inputs), tuned)
    assert all(p.requires_grad for p in Adapter(unet).parameters.values())


@pytest.mark.parametrize("trains", [True, False])
def test_switching_off_and_on_leaves_gradients_as_they_were(trains: bool) -> None:
    unet = tuned_unet()
    for parameter in Adapter(unet).parameters.values():
        parameter.requires_grad_(trains)
    with Adapter(unet).disabled():
        pass
    assert all(p.requires_grad is trains for p in Adapter(unet).parameters.values())
    assert not any(p.requires_grad for name, p in unet.named_parameters() if ".apt." not in name)


def test_off_inside_off_is_off_to_the_end_of_the_outer_block() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    adapter, base = Adapter(unet), tiny_components().unet
    with torch.no_grad():
        with adapter.disabled():
            with adapter.disabled():
                pass
            assert torch.equal(output(unet, inputs), output(base, inputs))
        assert not torch.equal(output(unet, inputs), output(base, inputs))


def test_an_adapter_that_cannot_be_put_on_whole_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    unet = tiny_components().unet
    before = repr(unet)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", no_memory)
    with pytest.raises(MemoryError):
        add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), seed=0)
    assert repr(unet) == before


def test_a_step_walks_over_no_module_tree() -> None:
    """SDXL's has 7,530 modules: one walk over it takes longer than the whole of what is allowed here."""
    unet = published("sdxl").unet
    adapter, regularised = Adapter(unet), Capture(StableDiffusion(), unet, features=["up"], attention=["up"])
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        with adapter.disabled(), regularised.record():
            pass
        with adapter.at(torch.zeros(1)), regularised.record():
            pass
    finally:
        sys.setprofile(None)
    assert calls < 5_000


# What is trained


def test_only_the_adapter_requires_grad(kind: str) -> None:
    unet = tiny_components(kind).unet.requires_grad_(True)
    add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), seed=0)
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in unet.named_parameters() if ".lora_" in name} and trained


@pytest.mark.parametrize("targets", ["attention", "attention+ff"])
def test_it_sits_on_the_named_layers_and_no_others(kind: str, targets: AdapterTargets) -> None:
    ends = ["to_q", "to_k", "to_v", "to_out.0"] + (["ff.net.0.proj", "ff.net.2"] if targets == "attention+ff" else [])
    parts = tiny_components(kind)
    unet = parts.unet
    expected = {
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and any(name.endswith("." + end) for end in ends)
    }
    shapes = {name: tuple(unet.get_parameter(f"{name}.weight").shape) for name in expected}
    add_adapter(unet, AdapterConfig(rank=3, alpha=3.0), targets=parts.family.adapted(targets), seed=0)
    state = Adapter(unet).state()
    assert {name.rsplit(".lora_", 1)[0] for name in state} == expected
    for name, (rows, columns) in shapes.items():
        assert state[f"{name}.lora_A.weight"].shape == (3, columns)
        assert state[f"{name}.lora_B.weight"].shape == (rows, 3)


def test_the_update_is_b_a_times_alpha_over_rank() -> None:
    unet = tuned_unet(rank=4, alpha=2.0)
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    layer, state = unet.get_submodule(name), Adapter(unet).state()
    x = torch.randn(2, 5, state[f"{name}.lora_A.weight"].shape[1], generator=generator("x"))
    with torch.no_grad():
        full = layer(x)
        with Adapter(unet).disabled():
            base = layer(x)
    update = 2.0 / 4 * (x @ state[f"{name}.lora_A.weight"].T @ state[f"{name}.lora_B.weight"].T)
    torch.testing.assert_close(full - base, update, rtol=1e-4, atol=1e-5)


def test_the_adapter_is_float32_on_a_bfloat16_base() -> None:
    unet, inputs = tuned_unet(dtype=torch.bfloat16), inputs_of("sd15", dtype=torch.bfloat16)
    parameters = Adapter(unet).parameters.values()
    assert all(p.dtype == torch.float32 for p in parameters)
    assert all(p.dtype == torch.bfloat16 for name, p in unet.named_parameters() if ".apt." not in name)
    prediction = output(unet, inputs)
    prediction.float().square().mean().backward()
    assert prediction.dtype == torch.bfloat16
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in parameters
    )


# Seeds and state


def test_the_seed_decides_and_the_bases_dtype_does_not() -> None:
    def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        unet = tiny_components().unet.to(dtype)
        add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), seed=seed)
        return Adapter(unet).state()

    one, same, other, half = drawn(0), drawn(0), drawn(1), drawn(0, torch.bfloat16)
    for name, value in one.items():
        assert torch.equal(value, same[name]) and torch.equal(value, half[name])
        if ".lora_A." in name:
            assert not torch.equal(value, other[name])
        else:
            assert not value.any()
    downs = [value for name, value in one.items() if ".lora_A." in name]
    spread = [float(value.abs().max()) * math.sqrt(value.shape[1]) for value in downs]
    assert min(spread) > 0 and 0.99 < max(spread) <= 1 + 1e-6  # kaiming uniform with a = sqrt(5)
    firsts = [value for name, value in one.items() if name.endswith("to_q.lora_A.weight")]
    assert not any(torch.equal(a, b) for a, b in zip(firsts, firsts[1:], strict=False) if a.shape == b.shape)


def test_adding_draws_nothing_from_the_callers_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_adapter(tiny_components().unet, AdapterConfig(rank=4, alpha=4.0), seed=0)
    # tiny_components forks the generator itself
    assert torch.equal(torch.rand(3), expected)


def test_the_state_goes_there_and_back(kind: str) -> None:
    unet, inputs = tuned_unet(kind), inputs_of(kind)
    state = Adapter(unet).state()
    other = tiny_components(kind).unet
    add_adapter(other, AdapterConfig(rank=4, alpha=2.0), seed=77)
    Adapter(other).load(state)
    with torch.no_grad():
        assert torch.equal(output(other, inputs), output(unet, inputs))
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in state.values())
    assert all(".apt" not in name for name in state)


def test_the_state_is_a_copy() -> None:
    unet = tuned_unet()
    state = Adapter(unet).state()
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in Adapter(unet).parameters.values():
            parameter.add_(1)
    assert all(torch.equal(state[name], value) for name, value in before.items())


# T-LoRA

RANKS = RankByTimestep(rank=4, min_rank=1, levels=even_levels(1000))


@pytest.mark.parametrize(("rank", "least", "total"), [(32, 16, 1000), (8, 1, 1000), (5, 2, 7), (4, 4, 1000)])
def test_ranks_follow_the_published_formula(rank: int, least: int, total: int) -> None:
    found = RankByTimestep(rank, least, even_levels(total)).at(torch.arange(total)).tolist()
    assert found == [((rank - least) * (total - t)) // total + least for t in range(total)]
    assert found[0] == rank and found[-1] in (least, least + (rank - least) // total)
    assert found == sorted(found, reverse=True)


def test_ranks_follow_the_noise_level() -> None:
    levels = (torch.arange(1000, dtype=torch.float64) / 999) ** 2
    found = RankByTimestep(8, 0, levels).at(torch.tensor([0, 353, 354, 706, 707, 999])).tolist()
    assert found == [8, 7, 6, 4, 3, 0]  # 8 (1 - level), and 354 / 999 squared is an eighth


def truncated(unet: UNet2DConditionModel, rank: int) -> UNet2DConditionModel:
    """The same adapter with the rows of lora_A beyond `rank` at zero."""
    with torch.no_grad():
        for name, parameter in Adapter(unet).parameters.items():
            if ".lora_A." in name:
                parameter[rank:] = 0
    return unet


def test_each_sample_has_its_own_rank() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    adapter, timesteps = Adapter(unet, RANKS), inputs["timestep"]
    assert isinstance(timesteps, Tensor) and RANKS.at(timesteps).tolist() == [3, 1]
    with torch.no_grad():
        full = output(unet, inputs)
        with adapter.at(timesteps):
            masked = output(unet, inputs)
        for i, rank in enumerate((3, 1)):
            expected = output(truncated(tuned_unet(), rank), inputs)
            torch.testing.assert_close(masked[i], expected[i], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(masked[i], full[i], atol=1e-4)
        assert torch.equal(output(unet, inputs), full), "all ranks again behind the block"
        with pytest.raises(RuntimeError, match="stop"), adapter.at(timesteps):
            raise RuntimeError("stop")
        assert torch.equal(output(unet, inputs), full), "also behind one that failed"


def test_an_adapter_without_ranks_by_timestep_always_has_all() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    adapter = Adapter(unet)
    with torch.no_grad():
        full = output(unet, inputs)
        with adapter.at(torch.tensor([900, 900])):
            assert torch.equal(output(unet, inputs), full)


def test_ranks_do_not_touch_the_prior() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    adapter = Adapter(unet, RANKS)
    with torch.no_grad(), adapter.at(torch.tensor([900, 900])), adapter.disabled():
        assert torch.equal(output(unet, inputs), output(tiny_components().unet, inputs))


def test_taking_it_off_leaves_no_hook() -> None:
    unet = tuned_unet()
    Adapter(unet, RANKS).remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def gradients(*, recompute: bool, dropout: float = 0.0) -> dict[str, Tensor]:
    unet, inputs = tuned_unet(dropout=dropout), inputs_of("sd15")
    unet.train()
    if recompute:
        unet.enable_gradient_checkpointing()
    torch.manual_seed(0)
    with Adapter(unet, RANKS).at(torch.tensor([100, 900])):
        output(unet, inputs).square().mean().backward()
    return {name: p.grad for name, p in Adapter(unet).parameters.items() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_recomputes_with_the_same_ranks_and_dropout(dropout: float) -> None:
    plain, recomputed = gradients(recompute=False, dropout=dropout), gradients(recompute=True, dropout=dropout)
    assert plain.keys() == recomputed.keys() and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
    assert any(gradient.any() for gradient in plain.values())


def test_a_rank_left_out_by_every_sample_gets_no_gradient() -> None:
    unet, inputs = tuned_unet(), inputs_of("sd15")
    with Adapter(unet, RANKS).at(torch.tensor([600, 900])):  # ranks 2 and 1
        output(unet, inputs).square().mean().backward()
    for name, parameter in Adapter(unet).parameters.items():
        assert parameter.grad is not None
        beyond, within = (parameter.grad[2:], parameter.grad[:2])
        if ".lora_B." in name:
            beyond, within = parameter.grad[:, 2:], parameter.grad[:, :2]
        assert not beyond.any() and within.any(), name


def test_another_packs_old_torchao_does_not_matter(tmp_path: Path) -> None:
    """peft gives up on any module where it finds one that it is too new for, though nothing here is quantised.

    The stand-in is empty, so it comes to sight only once diffusers is loaded, which in its older versions reads more of
    one than its number.
    """
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    (about := tmp_path / "torchao-0.1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.1.0\n")
    code = (
        "import sys, diffusers.models.unets.unet_2d_condition\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib.metadata; assert importlib.metadata.version('torchao') == '0.1.0'\n"
        "from tests.test_adapter import inputs_of, output, tuned_unet\n"
        "print(output(tuned_unet(), inputs_of('sd15')).double().sum().item().hex())"
    )
    command, place = [sys.executable, "-c", code], str(Path(__file__).parents[1])
    answer = subprocess.run(command, env={**os.environ, "PYTHONPATH": place}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[-1] == float(output(tuned_unet(), inputs_of("sd15")).double().sum().item()).hex()

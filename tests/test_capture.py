"""Features and attention maps read out of a UNet: equal to diffusers' own, with and without recomputation."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, Layers
from apt_train.families.sd.network import StableDiffusion
from apt_train.rng import generator
from apt_train.training.capture import Capture, Captured, attention_maps, attention_probabilities
from apt_train.training.losses import alignment_loss, stabilization_loss
from tests.tiny import tiny_components, unet_of

SD = StableDiffusion()
KINDS = ("sd15", "sdxl")
TOKENS = 16


def inputs_of(kind: str, count: int = 2) -> dict[str, Any]:
    draws = generator("capture inputs", kind)
    extra = {"text_embeds": torch.randn(count, 32, generator=draws), "time_ids": torch.ones(count, 6)}
    return {
        "sample": torch.randn(count, 4, 16, 16, generator=draws),
        "timestep": torch.tensor([100, 900])[:count],
        "encoder_hidden_states": 3 * torch.randn(count, TOKENS, 64 if kind == "sdxl" else 32, generator=draws),
        "added_cond_kwargs": extra if kind == "sdxl" else None,
    }


def tuned_unet(kind: str, *, recompute: bool = False) -> UNet2DConditionModel:
    unet = unet_of(tiny_components(kind))
    add_adapter(unet, AdapterConfig(rank=4, alpha=4.0), seed=0)
    draws = generator("capture adapter")
    with torch.no_grad():
        for name, parameter in Adapter(unet).parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draws))
    unet.train()
    if recompute:
        unet.enable_gradient_checkpointing()
    return unet


def every_token() -> tuple[Tensor, int]:
    """Columns that keep every token apart."""
    return torch.arange(TOKENS).expand(2, -1), TOKENS


def hooks_on(unet: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in unet.modules())


# Choice of layers


def ran(unet: nn.Module, inputs: dict[str, Any], pattern: str) -> list[str]:
    """Names of the modules that match and ran, in the order in which they ran."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in unet.named_modules()
        if re.fullmatch(pattern, name)
    ]
    with torch.no_grad():
        unet(**inputs)
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["attn1", "attn2"])
@pytest.mark.parametrize(
    ("layers", "blocks"),
    [("up", "up_blocks"), ("mid+up", "(mid_block|up_blocks)"), ("all", "(down_blocks|mid_block|up_blocks)")],
)
def test_the_named_part_of_the_unet_is_chosen(kind: str, attention: str, layers: Layers, blocks: str) -> None:
    unet = tiny_components(kind).unet
    found = (SD.features if attention == "attn1" else SD.attention)(unet, layers)
    assert sorted(found) == sorted(ran(unet, inputs_of(kind), rf"{blocks}\..*\.{attention}"))
    assert all(isinstance(unet.get_submodule(name), Attention) for name in found) and found


def test_the_parts_grow() -> None:
    unet = tiny_components().unet
    up, more, every = (set(SD.features(unet, layers)) for layers in ("up", "mid+up", "all"))
    assert up < more < every


# Maps and features


class Scores:
    """diffusers' plain attention processor, keeping the probabilities that `get_attention_scores` gave it."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        assert attn.to_k is not None and attn.to_v is not None and attn.to_out is not None
        parts = (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        query, key, value = map(attn.head_to_batch_dim, parts)
        scores = attn.get_attention_scores(query, key)
        self.kept[self.name] = scores.unflatten(0, (-1, attn.heads))
        return attn.to_out[0](attn.batch_to_head_dim(scores @ value))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_the_scores_of_diffusers_own_processor(kind: str) -> None:
    unet, inputs, theirs = tuned_unet(kind).eval(), inputs_of(kind), {}
    with torch.no_grad(), Capture(SD, unet, attention=["all"]).record() as record:
        prediction = unet(**inputs).sample
        maps = dict(zip(record.queries, attention_maps(record, *every_token()), strict=True))
    for name in SD.attention(unet, "all"):
        cast("Any", unet.get_submodule(name)).set_processor(Scores(theirs, name))
    with torch.no_grad():
        torch.testing.assert_close(unet(**inputs).sample, prediction, rtol=1e-4, atol=1e-5)
    assert maps.keys() == theirs.keys()
    for name, found in maps.items():
        torch.testing.assert_close(found, theirs[name], rtol=1e-4, atol=1e-6)
        heads: Any = unet.get_submodule(name).heads
        assert found.shape == (2, heads, found.shape[2], TOKENS) and heads > 1
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    spread = torch.stack([found.std() for found in maps.values()])
    assert spread.max() > 1e-3, "maps that are flat would make this test say nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_attn1s_output_after_its_projection(kind: str) -> None:
    unet, inputs, seen = tuned_unet(kind).eval(), inputs_of(kind), {}
    for name, layer in SD.features(unet, "all").items():
        module: Any = layer.module
        # to_out[1], the dropout, is the last thing before the residual
        module.to_out[1].register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad(), Capture(SD, unet, features=["all"]).record() as record:
        unet(**inputs)
    assert record.features.keys() == seen.keys() and not record.queries and not record.keys
    for name, found in record.features.items():
        assert torch.equal(found, seen[name]) and found.dim() == 3


def test_capturing_changes_nothing() -> None:
    unet, inputs = tuned_unet("sd15"), inputs_of("sd15")
    with torch.no_grad():
        plain = unet(**inputs).sample
        with Capture(SD, unet, features=["all"], attention=["all"]).record():
            assert torch.equal(unet(**inputs).sample, plain)


# Columns


def test_columns_are_summed_by_token() -> None:
    unet, inputs = tiny_components().unet, inputs_of("sd15")
    columns = torch.tensor([[0, 1, 2, 2, 2, 3, *[4] * 10], [0, 1, 1, 2, 3, *[4] * 11]])  # a span in either, apart
    with torch.no_grad(), Capture(SD, unet, attention=["up"]).record() as record:
        unet(**inputs)
    merged = attention_maps(record, columns, 6)  # column 5 is another sample's
    for whole, found in zip(attention_maps(record, *every_token()), merged, strict=True):
        expected = torch.zeros(*whole.shape[:-1], 6)
        for n in range(2):
            for token in range(TOKENS):
                expected[n, ..., columns[n, token]] += whole[n, ..., token]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
        assert (found[..., 5] == 0).all()


def test_probabilities_are_taken_in_float32() -> None:
    draws = generator("probabilities")
    query, key = (torch.randn(1, 3, 8, generator=draws).bfloat16() for _ in range(2))
    found = attention_probabilities(query, key, heads=2, scale=0.5)
    q, k = (x.float().reshape(1, 3, 2, 4).transpose(1, 2) for x in (query, key))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (0.5 * q @ k.mT).softmax(-1))


# With gradient checkpointing


def losses(
    unet: UNet2DConditionModel, record: Captured, prior: Captured, save_memory: bool
) -> tuple[Tensor, list[Tensor]]:
    columns = torch.tensor([[0, 1, 1, 2, *[3] * 12]]).expand(2, -1)
    maps = attention_maps(record, columns, 4, save_memory=save_memory)
    reference = attention_maps(prior, columns, 4)
    mu, sigma = stabilization_loss(list(record.features.values()), list(prior.features.values()))
    return mu + sigma + alignment_loss(maps, reference), maps


def gradients(kind: str, *, recompute: bool, save_memory: bool = False) -> tuple[dict[str, Tensor], list[Tensor]]:
    unet, inputs = tuned_unet(kind, recompute=recompute), inputs_of(kind)
    base = tiny_components(kind).unet
    with torch.no_grad(), Capture(SD, base, features=["all"], attention=["all"]).record() as prior:
        base(**inputs)
    with Capture(SD, unet, features=["all"], attention=["all"]).record() as record:
        prediction = unet(**inputs).sample
    layers = {kind_: dict(getattr(record, kind_)) for kind_ in ("features", "queries", "keys")}
    loss, maps = losses(unet, record, prior, save_memory)
    (loss + prediction.square().mean()).backward()
    for kind_, before in layers.items():  # the recomputation put nothing in
        after = getattr(record, kind_)
        assert after.keys() == before.keys() and all(after[name] is value for name, value in before.items())
    assert hooks_on(unet) == 0
    return {name: p.grad for name, p in Adapter(unet).parameters.items() if p.grad is not None}, [
        m.detach() for m in maps
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_gives_the_same_maps_and_gradients(kind: str) -> None:
    plain, plain_maps = gradients(kind, recompute=False)
    assert plain.keys() == Adapter(tuned_unet(kind)).parameters.keys()
    for settings in (
        {"recompute": True},
        {"recompute": True, "save_memory": True},
        {"recompute": False, "save_memory": True},
    ):
        found, maps = gradients(kind, **settings)
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert all(torch.equal(one, other) for one, other in zip(maps, plain_maps, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_captured_tensors_alone_carry_gradients(recompute: bool) -> None:
    """Under reentrant checkpointing they would not: the loss here has no other way to the adapter."""
    unet, inputs = tuned_unet("sd15", recompute=recompute), inputs_of("sd15")
    with Capture(SD, unet, features=["up"], attention=["up"]).record() as record:
        unet(**inputs)
    layers = list(record.features)
    torch.stack([x.square().mean() for x in (*record.features.values(), *record.queries.values())]).sum().backward()
    grads = {name: p.grad for name, p in Adapter(unet).parameters.items()}
    assert all(
        gradient is not None and gradient.any() for name, gradient in grads.items() if name.startswith("down_blocks.0")
    )
    last = f"{layers[-1].replace('attn1', 'attn2')}.to_out.0.lora_B.weight"
    assert (there := grads[last]) is None or not there.any()  # nothing captured comes after it


# Leaving


def test_hooks_are_gone_after_the_block_and_after_an_exception() -> None:
    unet, inputs = tuned_unet("sd15"), inputs_of("sd15")
    with torch.no_grad(), Capture(SD, unet, features=["all"], attention=["all"]).record():
        assert hooks_on(unet) == sum(3 for _ in SD.features(unet, "all"))
        unet(**inputs)
    assert hooks_on(unet) == 0
    with pytest.raises(KeyboardInterrupt), Capture(SD, unet, features=["all"], attention=["all"]).record():
        raise KeyboardInterrupt
    assert hooks_on(unet) == 0
    with pytest.raises(RuntimeError), Capture(SD, unet, features=["up"], attention=["up"]).record():
        unet(**{**inputs, "encoder_hidden_states": torch.zeros(2, TOKENS, 7)})
    assert hooks_on(unet) == 0


def test_a_second_pass_in_one_block_is_refused() -> None:
    unet, inputs = tiny_components().unet, inputs_of("sd15")
    with torch.no_grad(), Capture(SD, unet, features=["up"]).record():
        unet(**inputs)
        with pytest.raises(AssertionError, match="twice"):
            unet(**inputs)


def test_nothing_asked_for_is_nothing_recorded() -> None:
    unet, inputs = tiny_components().unet, inputs_of("sd15")
    with torch.no_grad(), Capture(SD, unet).record() as record:
        assert hooks_on(unet) == 0
        unet(**inputs)
    assert record == Captured() and attention_maps(record, *every_token()) == []

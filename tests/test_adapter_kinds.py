"""The kinds of adapter: each is the prior when off, trains, resumes, and acts from its file as it acted live.

Not here: what holds of any adapter (`test_adapter`), files and names (`test_export`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoKrConfig, LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from apt_train.adapter import Adapter, RankByTimestep, adapter_of, add_adapter
from apt_train.adapter_kinds import KINDS, Kind
from apt_train.config import AdapterConfig, AdapterTargets, TrainConfig
from apt_train.errors import InputError
from apt_train.families.components import Components
from apt_train.families.levels import even_levels
from apt_train.lora_check.formulas import change, kind_of
from apt_train.rng import generator
from apt_train.run.export import kohya_name, lora_to_kohya, save_lora
from apt_train.sample.apply import personalized
from tests.lora_files import metadata_of
from tests.test_adapter import inputs_of, output
from tests.test_extend import imported_copy
from tests.tiny import tiny_components, unet_of
from tests.training import Recorder, quick_config, run, same_weights, stopping

TOY = TrainConfig(class_word="toy")


# ---- two further kinds, each one place ----------------------------------------------------------------------------


def lokr_config(settings: AdapterConfig, targets: list[str]) -> LoKrConfig:
    alpha: Any = settings.effective_alpha
    return LoKrConfig(r=settings.rank, alpha=alpha, rank_dropout=settings.dropout, target_modules=targets)


def scale_as_comfyui_does(layer: Any, name: str, settings: AdapterConfig) -> None:
    """Only a product has a rank to divide by."""
    if name in layer.lokr_w2:
        layer.scaling[name] = 1.0


LOKR = Kind(
    title="LoKr",
    parts={part: part for part in ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    drawn=("lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    config=lokr_config,
    reads_base=True,
    put_on=scale_as_comfyui_does,
    network={"module": "lycoris.kohya", "args": '{"algo":"lokr"}'},
)


def uneven_config(settings: AdapterConfig, targets: list[str]) -> LoraConfig:
    alpha: Any = settings.effective_alpha
    ranks = {"to_q": settings.rank + 2, "mid_block.*": 1}
    return LoraConfig(r=settings.rank, lora_alpha=alpha, rank_pattern=ranks, target_modules=targets)


UNEVEN = replace(KINDS["lora"], title="uneven LoRA", config=uneven_config, by_rank="")
OWN = {"loha", "lokr", "uneven"}
ALL = (*KINDS, *sorted(OWN))
OF_LORA = [name for name, kind in KINDS.items() if KINDS["lora"].parts.keys() <= kind.parts.keys()]
PLAIN_LORA = [name for name in OF_LORA if KINDS[name].parts == KINDS["lora"].parts]


@pytest.fixture(scope="module")
def loha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    """As docs/extend/adapter.md adds it."""
    with imported_copy("adapter", tmp_path_factory.mktemp("copy")) as copy:
        yield copy.module("adapter_kinds").KINDS["loha"]


@pytest.fixture(autouse=True)
def own_kinds(monkeypatch: pytest.MonkeyPatch, loha: Kind) -> None:
    """Of another structure than LoRA; in the second a layer may keep a matrix whole. An entry is all they need."""
    for name, kind in {"loha": loha, "lokr": LOKR, "uneven": UNEVEN}.items():
        monkeypatch.setitem(KINDS, name, kind)


def small(**settings: Any) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "alpha": 2.0, **settings})


def adapted(
    kind: str,
    model: str = "sd15",
    dtype: torch.dtype = torch.float32,
    targets: AdapterTargets = "attention",
    **settings: Any,
) -> Components:
    """A tiny model whose adapter of that kind does something."""
    parts = tiny_components(model)
    parts.unet.to(dtype)
    adapter_of(parts.unet, small(kind=kind, targets=targets, **settings), parts.family, None, seed=1)
    return moved(parts)


def moved(parts: Components) -> Components:
    draws = generator("filled")
    with torch.no_grad():
        for parameter in Adapter(parts.unet).parameters.values():
            parameter.add_(0.3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=draws))
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    return parts


def predicted(parts: Components, model: str = "sd15", dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return output(parts.unet, inputs_of(model, dtype=dtype))


def in_file(parts: Components, settings: AdapterConfig) -> dict[str, Tensor]:
    return lora_to_kohya(Adapter(parts.unet).state(), settings.effective_alpha, parts.family, unet_of(parts).config)


def back(lora: dict[str, Tensor], settings: AdapterConfig, parts: Components) -> Any:
    """A model with the adapter of a file on it."""
    return personalized(parts, lora, None, TrainConfig(class_word="toy", adapter=settings))


# ---- on and off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ALL),
        *((kind, torch.bfloat16) for kind in ALL if kind not in OWN),  # peft 0.15 multiplies those in float32 alone
    ],
)
def test_a_fresh_one_changes_nothing_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    parts = tiny_components()
    parts.unet.to(dtype)
    before = predicted(parts, dtype=dtype)
    wide = parts.family.adapted("attention+ff")
    add_adapter(parts.unet, AdapterConfig(rank=4, alpha=2.0, dropout=0.2, kind=kind), targets=wide, seed=0)
    assert torch.equal(predicted(parts, dtype=dtype), before)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_off_it_is_the_prior_to_the_bit_after_training_steps(kind: str, model: str) -> None:
    """And every weight of it has moved, from float32 gradients through recomputed activations and dropout."""
    base, parts = tiny_components(model), tiny_components(model)
    wide = parts.family.adapted("attention+ff")
    adapter = add_adapter(parts.unet, AdapterConfig(rank=4, alpha=4.0, dropout=0.1, kind=kind), targets=wide, seed=0)
    fresh, optimizer = adapter.state(), torch.optim.AdamW(adapter.parameters.values(), lr=1e-2)
    unet_of(parts).train().enable_gradient_checkpointing()
    for _ in range(3):
        optimizer.zero_grad()
        output(parts.unet, inputs_of(model)).square().mean().backward()
        optimizer.step()
    parts.unet.eval()
    assert all(not torch.equal(fresh[name], tensor) for name, tensor in adapter.state().items())
    with adapter.disabled():
        assert torch.equal(predicted(parts, model), predicted(base, model))
    assert not torch.equal(predicted(parts, model), predicted(base, model))
    adapter.remove()
    assert torch.equal(predicted(parts, model), predicted(base, model))
    assert repr(parts.unet) == repr(base.unet)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    def gradients(*, recompute: bool) -> list[Tensor]:
        parts = adapted(kind, dropout=0.3)
        parts.unet.train()
        if recompute:
            unet_of(parts).enable_gradient_checkpointing()
        torch.manual_seed(0)
        output(parts.unet, inputs_of("sd15")).square().mean().backward()
        return [p.grad for p in Adapter(parts.unet).parameters.values() if p.grad is not None]

    plain, recomputed = gradients(recompute=False), gradients(recompute=True)
    assert len(plain) == len(recomputed) > 0
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_float32_on_a_half_precision_base(kind: str) -> None:
    parts = adapted(kind, dtype=torch.bfloat16)
    prediction = output(parts.unet, inputs_of("sd15", dtype=torch.bfloat16))
    prediction.float().square().mean().backward()
    assert prediction.dtype == torch.bfloat16
    for name, parameter in Adapter(parts.unet).parameters.items():
        assert parameter.dtype == torch.float32 and parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


class Products(TorchDispatchMode):
    """The types of all that is multiplied by matrices inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in ("mm", "addmm", "bmm", "linear", "matmul"):
            self.types |= {tensor.dtype for tensor in args if isinstance(tensor, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", OF_LORA)  # of others peft multiplies in float32 alone
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_its_products_run_in_the_type_of_the_base(kind: str, dtype: torch.dtype) -> None:
    """Forward and backward, float32 weights and all: a GPU multiplies float32 many times slower."""
    parts = adapted(kind, dtype=dtype, targets="attention+ff")
    parts.unet.train()
    with Products() as seen:
        output(parts.unet, inputs_of("sd15", dtype=dtype)).float().square().mean().backward()
    # a DoRA's column norms need the update's own matrix, which is small beside a pass
    assert seen.types == ({dtype, torch.float32} if kind == "dora" else {dtype})


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_it_learns_as_in_float32(kind: str) -> None:
    """Losses of the same steps lie within 1%, beside a fall of 5 to 10%."""
    curves = {}
    for precision in ("fp32", "bf16"):
        recorder = Recorder()
        run(**PLAIN, kind=kind, steps=24, precision=precision, on_event=recorder, watch_drift=False)
        curves[precision] = torch.tensor([step.loss for step in recorder.steps])
    torch.testing.assert_close(curves["bf16"], curves["fp32"], rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", ALL)
def test_what_it_draws_comes_from_the_seed_alone(kind: str) -> None:
    def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        unet = tiny_components().unet.to(dtype)
        state = add_adapter(unet, AdapterConfig(rank=4, alpha=4.0, kind=kind), seed=seed).state()
        return {name: tensor for name, tensor in state.items() if name.endswith(KINDS[kind].drawn)}

    one, same, half, other = drawn(0), drawn(0), drawn(0, torch.bfloat16), drawn(1)
    assert bool(one) == bool(KINDS[kind].drawn)
    assert all(torch.equal(one[name], same[name]) and torch.equal(one[name], half[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ALL)
def test_its_state_goes_there_and_back(kind: str) -> None:
    parts, other = adapted(kind), tiny_components()
    fresh = add_adapter(other.unet, small(kind=kind), seed=9)
    fresh.load(Adapter(parts.unet).state())
    assert torch.equal(predicted(other), predicted(parts))


# ---- its file ----------------------------------------------------------------------------------------------------


def as_a_host_reads(weight: Tensor, lora: dict[str, Tensor], name: str) -> Tensor:
    """What ComfyUI makes of a layer's weight, at strength 1."""
    if f"{name}.lora_up.weight" not in lora:
        parts = {key.removeprefix(f"{name}."): tensor for key, tensor in lora.items() if key.startswith(f"{name}.")}
        assert kind_of(parts) is not None, f"lora_check/formulas.py has no formula for {sorted(parts)}"
        return weight + change(parts, weight)
    down, up = lora[f"{name}.lora_down.weight"], lora[f"{name}.lora_up.weight"]
    tuned = weight + lora[f"{name}.alpha"] / down.shape[0] * (up @ down)
    scale = lora.get(f"{name}.dora_scale")
    if scale is None:
        return tuned
    assert scale.shape == (1, weight.shape[1])
    return tuned * scale / tuned.norm(dim=0, keepdim=True)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("model", "alpha"), [("sd15", 6.0), ("sdxl", 2.0)])
def test_the_weights_its_file_gives_act_as_the_live_adapter(kind: str, model: str, alpha: float) -> None:
    live, read = adapted(kind, model, alpha=alpha, targets="attention+ff"), tiny_components(model)
    prior, lora = predicted(read, model), in_file(live, small(alpha=alpha, kind=kind))
    config = unet_of(read).config
    named = {kohya_name(path, read.family, config): module for path, module in read.unet.named_modules()}
    with torch.no_grad():
        for name in {key.partition(".")[0] for key in lora}:
            weight = named[name].get_parameter("weight")
            weight.copy_(as_a_host_reads(weight, lora, name))
    assert (predicted(live, model) - prior).abs().max() > 0.05  # it shows
    torch.testing.assert_close(predicted(read, model), predicted(live, model), atol=5e-5, rtol=1e-4)


ANYWHERE = ("to_q", "conv1", "conv2", "conv_shortcut", "conv", "proj_in", "conv_in", "time_emb_proj", "linear_1")


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_lora_may_sit_on_any_layer_with_a_matrix(model: str, dtype: torch.dtype, off: float) -> None:
    """On convolutions too, if a family names them: it acts from its file as it acted live."""
    live, read = tiny_components(model), tiny_components(model)
    live.unet.to(dtype)
    prior = predicted(live, model, dtype)
    add_adapter(live.unet, small(), targets=ANYWHERE)
    assert torch.equal(predicted(live, model, dtype), prior)
    lora, names = in_file(moved(live), small()), read.family.file_words.network_names(read.unet)
    layers = {name: tensor for name, tensor in lora.items() if name.endswith(".lora_down.weight")}
    assert {tensor.dim() for tensor in layers.values()} == {2, 4}
    with torch.no_grad():
        for name in (key.partition(".")[0] for key in layers):
            ends = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
            weight = read.unet.get_submodule(names[name]).get_parameter("weight")
            weight += change({part: lora[f"{name}.{end}"] for end, part in ends.items()}, weight)
    torch.testing.assert_close(predicted(read, model), predicted(live, model, dtype).float(), atol=off, rtol=off)


@pytest.mark.parametrize("given", [1, 2])  # one timestep for the whole batch, as in sampling, or each its own
def test_t_lora_takes_ranks_away_on_any_layer(given: int) -> None:
    """At the noisiest timestep the second half of the ranks is as if it were zero."""
    ranks, timesteps = RankByTimestep(4, 2, even_levels(1000)), torch.full((given,), 999)
    parts = tiny_components()
    adapter = add_adapter(parts.unet, small(), targets=ANYWHERE, ranks=ranks)
    moved(parts)
    with adapter.at(timesteps):
        masked = predicted(parts)
    assert not torch.equal(masked, predicted(parts))
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter[2:] *= "lora_A" not in name
    torch.testing.assert_close(predicted(parts), masked)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_its_file_put_back_is_the_live_adapter(kind: str, model: str) -> None:
    settings = small(kind=kind, targets="attention+ff")
    live, again = adapted(kind, model, targets="attention+ff"), tiny_components(model)
    with back(in_file(live, settings), settings, again) as (_, adapter):
        assert adapter.state().keys() == Adapter(live.unet).state().keys()
        assert torch.equal(predicted(again, model), predicted(live, model))


@pytest.mark.parametrize("kind", ALL)
def test_a_file_that_does_not_fit_is_named(kind: str) -> None:
    settings, parts = small(kind=kind), tiny_components()
    lora = in_file(adapted(kind), settings)
    for key in sorted(lora)[:4]:
        for broken in (
            {**lora, key: torch.zeros(7, 7)},
            {**lora, key: torch.tensor(1.0)} if not key.endswith(".alpha") else {**lora, key: torch.zeros(1)},
            {name: tensor for name, tensor in lora.items() if name != key},
        ):
            with pytest.raises(InputError, match=re.escape(key)), back(broken, settings, parts):
                pass
    assert not Adapter(parts.unet).parameters


def pipeline_with(parts: Components, folder: Path, lora: dict[str, Tensor]) -> None:
    save_lora(folder / "toy.safetensors", lora, {})
    encoder = parts.text_encoders[0]
    given: dict[str, Any] = dict(  # diffusers' annotations allow none of the parts that may be left out
        vae=parts.vae, unet=parts.unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=encoder.model, tokenizer=encoder.tokenizer, safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    pipeline: Any = StableDiffusionPipeline(**given, requires_safety_checker=False)
    pipeline.load_lora_weights(str(folder), weight_name="toy.safetensors")


@pytest.mark.parametrize("kind", PLAIN_LORA)
def test_diffusers_reads_it(kind: str, tmp_path: Path) -> None:
    live, fresh = adapted(kind, rank=3), tiny_components()
    pipeline_with(fresh, tmp_path, in_file(live, small(rank=3, kind=kind)))
    torch.testing.assert_close(predicted(fresh), predicted(live), atol=2e-5, rtol=1e-5)


def test_diffusers_says_that_it_leaves_a_doras_magnitudes_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does so with every DoRA under kohya's names, whatever the axis: hence the setting's `for ComfyUI alone`."""
    pipeline_with(tiny_components(), tmp_path, in_file(adapted("dora"), small(kind="dora")))
    assert "DoRA checkpoint that is not compatible in Diffusers" in caplog.text


# ---- what each is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scale"), [("lora", 0.5), ("rslora", 2 / math.sqrt(4)), ("dora", 0.5)])
def test_the_scale_is_the_kinds_in_training_and_in_the_file(kind: str, scale: float) -> None:
    settings = small(kind=kind)
    assert settings.effective_alpha / 4 == scale
    result = run(**PLAIN, kind=kind, rank=4, alpha=2.0, steps=1)
    alphas = {float(tensor) for key, tensor in result.lora.items() if key.endswith(".alpha")}
    assert alphas == {settings.effective_alpha}


def test_an_rslora_trains_as_a_lora_of_its_scale() -> None:
    result = run(**PLAIN, kind="rslora", rank=4, alpha=2.0)
    assert same_weights(result, run(**PLAIN, rank=4, alpha=4.0))
    assert not same_weights(result, run(**PLAIN, rank=4, alpha=2.0))


def linear(parts: Components, path: str) -> Any:
    """The layer, or what an adapter has put in its place."""
    return parts.unet.get_submodule(path)


def test_a_doras_magnitude_is_the_size_of_each_column() -> None:
    """Whatever the LoRA's part does, the columns of the tuned weights have the lengths of `lora_magnitude`."""
    parts = adapted("dora")
    path = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    state, layer = Adapter(parts.unet).state(), linear(parts, path)
    with torch.no_grad():
        columns = layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))  # the bias away
    torch.testing.assert_close(columns.norm(dim=1)[None], state[f"{path}.lora_magnitude"].abs(), rtol=1e-4, atol=1e-5)
    base = linear(tiny_components(), path).weight
    fresh = add_adapter(tiny_components().unet, small(kind="dora")).state()
    assert torch.equal(fresh[f"{path}.lora_magnitude"], base.detach().norm(dim=0, keepdim=True))


def test_small_changes_of_a_magnitude_are_not_lost_in_half_precision() -> None:
    """In bfloat16, x times 1.001 is x."""
    parts = tiny_components()
    adapter = add_adapter(parts.unet.to(torch.bfloat16), small(kind="dora"))
    layer = linear(parts, "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0")
    x = torch.full((1, layer.in_features), 1000.0, dtype=torch.bfloat16)
    with torch.no_grad():
        before = layer(x).float()
        for name, parameter in adapter.parameters.items():
            if name.endswith("lora_magnitude"):
                parameter.mul_(1.02)
        change = layer(x).float() - before
    assert change.norm() / before.norm() == pytest.approx(0.02, rel=0.3)


# ---- the setting -------------------------------------------------------------------------------------------------


PLAIN: dict[str, Any] = {"method": "dreambooth", "identifier_mode": "word"}  # the quickest run there is


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.usefixtures("no_report")
def test_a_run_with_it_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**PLAIN, "kind": kind, "dropout": 0.1}
    run(output_dir=tmp_path, on_event=stopping(2), **settings)
    assert same_weights(run(output_dir=tmp_path, resume=True, **settings), run(**settings))


@pytest.mark.parametrize(
    ("kind", "module", "words"),
    [
        ("lora", "networks.lora", "by APT in"),
        ("rslora", "networks.lora", "by APT with rsLoRA in"),
        ("dora", "lycoris.kohya", "by APT with DoRA in"),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_the_file_says_what_it_is(kind: str, module: str, words: str, tmp_path: Path) -> None:
    run(output_dir=tmp_path, kind=kind, steps=1, rank=4, alpha=2.0, identifier_mode="word")
    said = metadata_of(tmp_path / "toy_subject.safetensors")
    assert said["ss_network_module"] == module and words in said["modelspec.description"]
    assert float(said["ss_network_alpha"]) == small(kind=kind).effective_alpha
    assert json.loads(said["apt_config"])["adapter"]["kind"] == kind
    assert ("dora_wd" in said.get("ss_network_args", "")) == (kind == "dora")


def test_runs_from_before_it_could_be_chosen_stay_the_same_run() -> None:
    assert "kind" not in quick_config().identity()["adapter"]
    assert quick_config(kind="dora").identity()["adapter"]["kind"] == "dora"


@pytest.mark.parametrize("kind", ALL)
def test_on_a_base_in_four_bits_it_trains_or_is_refused(kind: str) -> None:
    """Such a base has neither the values nor the shape of its weights."""
    settings: dict[str, Any] = {**PLAIN, "kind": kind, "base_storage": "nf4", "steps": 1}
    if KINDS[kind].reads_base:
        with pytest.raises(InputError, match=f"^base_storage is nf4: {kind} reads the base's weights"):
            quick_config(**settings)
    else:
        run(**settings, watch_drift=False)


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="kind is 'lorra': choose one of lora, rslora, dora"):
        quick_config(kind="lorra")


def test_t_lora_takes_ranks_away_only_where_that_is_right() -> None:
    with pytest.raises(InputError, match="kind is dora: T-LoRA takes ranks away, so choose lora or rslora"):
        quick_config(method="tlora", kind="dora")
    by_rank = run(**{**PLAIN, "method": "tlora"}, kind="rslora", min_rank=1)
    assert not same_weights(by_rank, run(**PLAIN, kind="rslora"))
    with pytest.raises(AssertionError, match="no ranks"):
        add_adapter(tiny_components().unet, small(kind="dora"), ranks=RankByTimestep(4, 1, even_levels(1000)))


def test_what_a_kind_puts_on_a_layer_knows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AdapterConfig] = []
    lora = KINDS["lora"]
    monkeypatch.setitem(KINDS, "seen", replace(lora, put_on=lambda layer, name, settings: seen.append(settings)))
    adapted("seen", rank=3, dropout=0.25)
    assert seen and {(one.rank, one.dropout, one.kind) for one in seen} == {(3, 0.25, "seen")}


def test_a_weight_without_a_name_in_a_file_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "short", replace(KINDS["lora"], parts={"lora_A.weight": "lora_down.weight"}))
    unet = tiny_components().unet
    with pytest.raises(
        AssertionError, match=r"to_[kqv].lora_B.weight has no name in a file: list it in the kind's parts"
    ):
        add_adapter(unet, small(kind="short"))
    assert not Adapter(unet).parameters


def test_a_weight_has_one_name_in_files_whatever_the_kind() -> None:
    """Because it is looked up among all kinds."""
    pairs = {pair for kind in KINDS.values() for pair in kind.parts.items()}
    assert len(pairs) == len(dict(pairs)) == len({theirs for _, theirs in pairs})


@pytest.mark.usefixtures("no_report")
def test_a_kind_may_leave_weights_as_they_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LoRA-FA does. They are written with the others, and no gradient, moment or decay is theirs."""

    def freeze(layer: Any, name: str, settings: AdapterConfig) -> None:
        layer.lora_A[name].weight.requires_grad_(False)

    monkeypatch.setitem(KINDS, "half", replace(KINDS["lora"], put_on=freeze))
    settings: dict[str, Any] = {**PLAIN, "kind": "half", "balance_every": 1, "weight_decay": 1.0}
    run(output_dir=tmp_path, on_event=stopping(2), **settings)
    result, first = run(output_dir=tmp_path, resume=True, **settings), run(**{**settings, "steps": 1})
    assert same_weights(result, run(**settings))
    kept = [key for key, tensor in result.lora.items() if torch.equal(tensor, first.lora[key])]
    assert {key.partition(".")[2] for key in kept} == {"lora_down.weight", "alpha"}
    assert not [name for name in load_file(tmp_path / "snapshots/step_000004/state.safetensors") if "lora_A" in name]


# ---- another one -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_another_kind_is_one_place(tmp_path: Path) -> None:
    """Chosen, trained, resumed, written, said, and read back: of another structure than LoRA, and all by its name."""
    settings: dict[str, Any] = {**PLAIN, "kind": "loha", "alpha": 3.0}
    run(output_dir=tmp_path, on_event=stopping(2), **settings)
    parts = tiny_components()
    result = run(parts, output_dir=tmp_path, resume=True, **settings)
    assert same_weights(result, run(**settings))
    assert {key.partition(".")[2] for key in result.lora} == {*KINDS["loha"].parts, "alpha"}
    assert metadata_of(tmp_path / "toy_subject.safetensors")["ss_network_module"] == "lycoris.kohya"
    prior = predicted(parts)
    with personalized(parts, result.lora, result.embeddings, quick_config(**settings)):
        tuned = predicted(parts)
    merge(parts.unet, result.lora, parts)
    assert not torch.equal(tuned, prior)
    torch.testing.assert_close(predicted(parts), tuned, atol=5e-5, rtol=1e-4)


def merge(unet: nn.Module, lora: dict[str, Tensor], parts: Components) -> None:
    config = unet_of(parts).config
    named: Any = {kohya_name(path, parts.family, config): module for path, module in unet.named_modules()}
    with torch.no_grad():
        for name in {key.partition(".")[0] for key in lora}:
            one, other = (lora[f"{name}.hada_w{n}_a"] @ lora[f"{name}.hada_w{n}_b"] for n in (1, 2))
            named[name].weight += lora[f"{name}.alpha"] / 4 * one * other

"""The memory benchmark's counting, on tiny networks: by hand, against a real run, against autograd's own hooks."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_train.adapter import add_adapter
from apt_train.config import AdapterConfig, Method
from apt_train.families.components import Components
from apt_train.families.storage import STORAGES
from apt_train.training import estimate
from apt_train.training.live_bytes import META, LiveBytes, as_on_a_gpu, weight_bytes
from apt_train.training.memory import Memory, Savings
from apt_train.training.meta_results import MetaResults, storage_key
from apt_train.training.plan import Plan
from benchmarks import memory
from benchmarks.memory import Row, row_of, step_bytes
from tests.tiny import tiny_components
from tests.training import pictures, quick_config

KINDS, SIDE, RANK = ("sd15", "sdxl"), 64, 4
METHODS: tuple[Method, ...] = ("apt", "dreambooth")
CPU = torch.device("cpu")


def tiny(kind: str, device: torch.device) -> Components:
    parts = tiny_components(kind)
    for module in (parts.unet, *(encoder.model for encoder in parts.text_encoders)):
        nn.Module.to(module, device)
    add_adapter(parts.unet, AdapterConfig(rank=RANK, alpha=RANK))
    parts.unet.train()
    return parts


@functools.cache
def row(kind: str, checkpointing: bool, method: Method) -> Row:
    return row_of(tiny(kind, META), method, SIDE, checkpointing=checkpointing)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_lora_are_those_summed_by_hand(kind: str) -> None:
    parts, found = tiny_components(kind), row(kind, True, "apt")
    linear: list[Any] = [m for n, m in parts.unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    lora = sum(RANK * (layer.in_features + layer.out_features) for layer in linear)
    assert found.adapter == (1 + 1 + 2) * 4 * lora  # weights, gradients, two moments
    assert found.unet == 4 * sum(tensor.numel() for tensor in parts.unet.state_dict().values())
    tensors = [tensor for encoder in parts.text_encoders for tensor in encoder.model.state_dict().values()]
    assert found.text_encoders == 4 * sum(tensor.numel() for tensor in tensors)
    assert found.total == found.unet + found.text_encoders + found.adapter + found.peak


def test_published_models_have_their_published_sizes() -> None:
    parts = memory.published("sd15")
    assert weight_bytes(p for n, p in parts.unet.named_parameters() if ".lora_" not in n) == 2 * 859_520_964
    assert weight_bytes(parts.text_encoders[0].model.parameters()) == 2 * 123_060_480
    assert parts.vae is not None and weight_bytes(parts.vae.parameters()) == 4 * 83_653_863
    step = memory._training_step(parts, "apt", checkpointing=False)
    assert step.conditioner.encode(["a photo of {subject}"], tuned=True).hidden.shape == (1, 77, 768)


@pytest.mark.slow
def test_published_sdxl_has_its_published_size() -> None:
    parts = memory.published("sdxl")
    assert weight_bytes(p for n, p in parts.unet.named_parameters() if ".lora_" not in n) == 2 * 2_567_463_684
    sizes = [weight_bytes(encoder.model.parameters()) for encoder in parts.text_encoders]
    assert sizes == [2 * 123_060_480, 2 * 694_659_840]
    step = memory._training_step(parts, "apt", checkpointing=False)
    conditioning = step.conditioner.encode(["a photo of {subject}"], tuned=True)
    assert conditioning.pooled is not None
    assert (conditioning.hidden.shape, conditioning.pooled.shape) == ((1, 77, 2048), (1, 1280))


def test_checkpointing_keeps_less_and_apt_more() -> None:
    for method in METHODS:
        plain, recomputed = row("sdxl", False, method), row("sdxl", True, method)
        assert 0 < recomputed.kept < plain.kept / 2
        assert recomputed.kept < recomputed.peak < plain.peak
    for checkpointing in (False, True):
        apt, dreambooth = (row("sdxl", checkpointing, method) for method in METHODS)
        assert apt.kept > dreambooth.kept and apt.peak > dreambooth.peak


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "checkpointing"), [("sd15", True), ("sdxl", False), ("sdxl", True)])
def test_meta_counts_what_a_real_run_on_the_cpu_does(kind: str, checkpointing: bool, method: Method) -> None:
    counted = row(kind, checkpointing, method)
    kept, peak = step_bytes(tiny(kind, CPU), method, SIDE, checkpointing=checkpointing)
    assert counted.kept == kept
    assert counted.peak == pytest.approx(peak, abs=512)  # the odd scalar


@pytest.mark.parametrize("device", [CPU, META])
def test_what_is_kept_is_what_autograd_saves(device: torch.device) -> None:
    """Counted a second time, by autograd's hooks; beside it stand inputs, embeddings and scalars alone."""
    parts = tiny("sdxl", device)
    modules = [parts.unet, *(encoder.model for encoder in parts.text_encoders)]
    weights = {storage_key(tensor) for module in modules for tensor in module.parameters()}
    step = memory._training_step(parts, "apt", checkpointing=True)
    saved: dict[int, tuple[weakref.ref, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key not in weights:
            saved[key] = weakref.ref(storage), storage.nbytes()
        return tensor.detach()

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with memory._checkpointing(memory.sd_unet(parts), True), as_on_a_gpu(), hooks, LiveBytes(modules) as live:
        batch = memory._batch(parts, SIDE)
        output = step(batch, with_prior=True)
    # Some are saved for a result that nobody asks for the gradient of, and freed with it.
    counted = sum(size for storage, size in saved.values() if storage() is not None)
    cached = [one for pair in step.conditioner._cache.values() for one in pair if one is not None]
    beside = weight_bytes([batch.latents, batch.noise, batch.timesteps, batch.size_ids, *cached])
    assert output.total.requires_grad
    assert counted <= live.now <= counted + beside + 512


def test_the_stand_in_for_attention_keeps_what_a_fused_kernel_keeps() -> None:
    """Here torch's own flash kernel for the CPU; outside the block it is in place again."""

    def kept() -> tuple[list[tuple[tuple[int, ...], torch.dtype]], Tensor]:
        saved: list[tuple[tuple[int, ...], torch.dtype]] = []
        query, key = (torch.ones(1, 2, n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (6, 3))

        def pack(tensor: Tensor) -> Tensor:
            saved.append((tuple(tensor.shape), tensor.dtype))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = F.scaled_dot_product_attention(query, key, key, attn_mask=None, dropout_p=0.0)
        output.sum().backward()
        return sorted(saved, key=str), output

    with as_on_a_gpu():
        stood_in, output = kept()
    real, expected = kept()
    assert stood_in == real and len(real) == 5
    assert output.shape == expected.shape and not output.any() and expected.all()


def test_a_freed_tensor_counts_for_the_peak_alone() -> None:
    module = nn.Linear(8, 8)
    with LiveBytes([module]) as live:
        first = torch.zeros(100)
        view = first[10:]
        first = torch.zeros(50)
        assert live.now == 600
        del view
        module.weight.detach()
    assert (live.now, live.peak, first.numel()) == (200, 600, 50)


# ---- results that are remembered ---------------------------------------------------------------------------------

ATEN: Any = torch.ops.aten


class Called:
    """An operation, and how often it was worked out."""

    def __init__(self, func: Any) -> None:
        self.func, self.count = func, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.func(*args, **kwargs)


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def test_a_result_on_meta_is_worked_out_once_per_kind_of_input() -> None:
    results, layer_norm = MetaResults(), Called(ATEN.native_layer_norm.default)
    for _ in range(3):
        found = results(layer_norm, (blank(2, 3, 4), [4], blank(4), None, 1e-5), {})
        assert [tuple(one.shape) for one in found] == [(2, 3, 4), (2, 3, 1), (2, 3, 1)] and isinstance(found, tuple)
    assert layer_norm.count == 1


@pytest.mark.parametrize(
    "other",
    [
        (blank(4, 2), 2),
        (blank(2, 4, dtype=torch.int64), 2),
        (blank(4, 2).t(), 2),
        (blank(2, 4), 2.0),
        (blank(2, 4), True),
    ],
    ids=["shape", "type", "strides", "a float", "a truth value"],
)
def test_another_kind_of_input_is_another_result(other: tuple[Any, ...]) -> None:
    results, product = MetaResults(), Called(ATEN.mul.Tensor)
    results(product, (blank(2, 4), 2), {})
    found, alone = results(product, other, {}), ATEN.mul.Tensor(*other)
    assert product.count == 2
    assert (found.shape, found.stride(), found.dtype) == (alone.shape, alone.stride(), alone.dtype)


@pytest.mark.parametrize(
    ("func", "arguments"),
    [
        (ATEN.view.default, lambda given: (given, [8])),
        (ATEN._unsafe_view.default, lambda given: (given, [8])),  # whose schema says nothing of the shared storage
        (ATEN.add_.Tensor, lambda given: (given, 1)),
    ],
    ids=["a view", "an unsafe view", "in place"],
)
def test_what_shares_its_storage_with_an_input_still_does(func: Any, arguments: Any) -> None:
    results = MetaResults()
    for _ in range(2):
        given = blank(2, 4)
        assert storage_key(results(func, arguments(given), {})) == storage_key(given)


def test_what_has_content_is_never_remembered() -> None:
    results = MetaResults()
    assert [float(results(ATEN.add.Tensor, (torch.tensor(one), 1), {})) for one in (1.0, 2.0)] == [2, 3]


@pytest.mark.parametrize(
    ("kind", "settings", "aside"),
    [
        ("sdxl", {}, True),
        ("sd15", {"method": "dreambooth", "base_storage": "fp8"}, False),
        ("sd15", {"method": "dreambooth", "base_storage": "nf4"}, False),
    ],
)
def test_an_estimate_is_the_same_as_without_remembering(
    kind: str, settings: dict[str, Any], aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)

    def found() -> Memory | None:
        config, device = quick_config(resolution=SIDE, **settings), torch.device("cuda")
        made = Plan(tiny_components(kind), pictures(), None, config, device, torch.bfloat16)
        return estimate.estimated(made, Savings(2, aside))

    remembered = found()
    monkeypatch.setattr(MetaResults, "__call__", lambda self, func, args, kwargs: func(*args, **kwargs))
    assert remembered == found() is not None


# ---- what is told ------------------------------------------------------------------------------------------------


def test_what_a_run_would_tell_is_less_if_rounded_in_word_mode_and_with_encoders_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    plans = memory.plans_of(tiny("sd15", META), SIDE)
    told = {(plan["base_storage"], plan["encoders"]): (plan["step"], plan["vae"]) for plan in plans}
    assert set(told) == {(storage, place) for storage in ("full", *STORAGES) for place in ("stay", "aside", "leave")}
    assert [plan["identifier_mode"] for plan in plans] == (1 + len(STORAGES)) * ["learned", "learned", "word"]
    assert all(told[storage, place][0] < told["full", place][0] for storage, place in told if storage != "full")
    for storage in ("full", *STORAGES):
        assert told[storage, "leave"] < told[storage, "stay"] and told[storage, "aside"] < told[storage, "stay"]
    assert min(min(both) for both in told.values()) > 0


def test_what_is_reached_is_what_a_run_on_such_a_card_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    monkeypatch.setitem(memory.FREE, "sd15", (None, 0.1))  # GiB; room for what is not counted alone takes more
    rows = memory.reached_by(tiny_components("sd15"))
    assert [tuple(row[name] for name in memory.REACHED[2:]) for row in rows] == [
        ("default", None, "0 of 2", "stay", "0 of 12"),
        ("default", 0.1, "2 of 2", "aside", "12 of 12"),
        ("low memory", None, "2 of 2", "stay", "0 of 12"),
    ]
    enough, short, low = (row["step"] for row in rows)
    assert short < enough and low < enough and [row["at_most"] for row in rows] == [2.5, 2.5, 1.8]


def test_a_step_on_a_mac_takes_less_if_rounded_or_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    full, half = memory.on_macs(tiny_components("sd15"))
    assert (full["precision"], half["precision"]) == ("float32", "bfloat16")
    assert full["step"] > full["recomputed"] > half["recomputed"] and full["step"] > half["step"] > half["recomputed"]


def test_the_report_says_what_it_is_and_adds_up() -> None:
    gib = memory.GIB
    row = Row("sdxl", 1024, True, "apt", 5 * gib, 2 * gib, gib, gib, 2 * gib)
    vae = {"model": "sdxl", "side": 1024, "weights": gib, "encode": 2 * gib, "decode": 3 * gib}
    plan = {
        "model": "sdxl",
        "side": 1024,
        "base_storage": "fp8",
        "identifier_mode": "word",
        "encoders": "leave",
        "step": gib,
        "vae": 3 * gib,
    }
    reached = {"model": "sdxl", "side": 1024, "settings": "default", "free": 8, "recomputes": "3 of 3"}
    reached |= {"encoders": "aside", "blocks": "9 of 87", "step": 6 * gib, "vae": 3 * gib, "at_most": 7.0}
    mac = {"model": "sdxl", "side": 1024, "precision": "float32", "step": 4 * gib, "recomputed": 2 * gib}
    text = memory.report([row], [vae], [plan], [reached], [mac])
    assert "| sdxl | 1024 | float32 | 4.0 | 2.0 |" in text
    assert "| sdxl | 1024 | default | 8 | 3 of 3 | aside | 9 of 87 | 6.0 | 3.0 | 7.0 |" in text
    assert "| sdxl | 1024 | fp8 | word | leave | 1.0 | 3.0 |" in text
    assert "| sdxl | 1024 | on | APT | 7.0 | 1.0 | 1.0 | 2.0 | 10.0 |" in text
    assert "| sdxl | 1024 | 1.0 | 2.0 | 3.0 | 11.0 | 12.0 | 7.0 |" in text
    assert "2.0 for sdxl" in text and "0.27 and 0.81 for sdxl" in text
    assert "not a measurement" in text and "Not counted" in text

"""Text encoders that wait in main memory and come to the device to work: the same numbers, in less memory.

Not here: what a step down is (`test_room`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apt_train.events import NoticeEvent
from apt_train.families.swapped import on_loan
from apt_train.text import conditioning
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from apt_train.training import estimate, plan, update
from apt_train.training.live_bytes import META, LiveBytes, on_meta, weight_bytes
from apt_train.training.memory import Memory, Savings
from apt_train.training.notes import ENCODERS_ASIDE, notes_of
from apt_train.training.out_of_memory import STEPPED_DOWN
from apt_train.training.plan import Plan, plan_run
from apt_train.training.train import train
from tests import pretend_device
from tests.tiny import tiny_components
from tests.training import Recorder, out_of_memory, pictures, quick_config, run, same_weights

CPU = torch.device("cpu")
CAPTIONS = ["a photo of {subject}", "a {subject} on grass"]
GB = 10**9
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run sets its encoders aside, on whatever device it trains."""
    monkeypatch.setattr(Plan, "savings", Savings(encoders_aside=True))


def learned() -> Conditioner:
    parts = tiny_components("sdxl")
    return Conditioner(
        parts.text_encoders, Identifier.from_init_word(parts.text_encoders, "dog hat"), class_word="toy", name="zwx"
    )


def encoded(conditioner: Conditioner) -> list[Tensor]:
    """What the UNet reads, and the gradient of the learned rows for a loss that reads all of it."""
    text = conditioner.encode(CAPTIONS, tuned=True)
    assert text.pooled is not None and conditioner.identifier is not None
    loss = text.hidden.sin().sum() + text.pooled.cos().sum()
    return [text.hidden, text.pooled, *torch.autograd.grad(loss, list(conditioner.identifier.rows))]


def test_aside_the_encoders_give_the_same_bits_and_gradients() -> None:
    resident, away = learned(), learned()
    away.put_aside()
    assert all(map(torch.equal, encoded(resident), encoded(away)))


def test_an_encoder_comes_once_a_pass_for_all_captions_and_none_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[int] = []

    @contextlib.contextmanager
    def watched(module: Any, device: torch.device) -> Iterator[None]:
        there.append(module.config.hidden_size)
        try:
            with on_loan(module, device):
                yield
        finally:  # a recomputation ends by an exception once it has what the backward pass needs
            there.append(0)

    monkeypatch.setattr(conditioning, "on_loan", watched)
    conditioner = learned()
    conditioner.put_aside()
    encoded(conditioner)
    models: list[Any] = [encoder.model for encoder in conditioner.encoders]
    sizes = [model.config.hidden_size for model in models]
    forward, backward = [n for size in sizes for n in (size, 0)], [n for size in reversed(sizes) for n in (size, 0)]
    assert there in (forward + backward, forward + forward)


def test_what_is_lent_comes_back_untouched_whatever_happens() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    with pytest.raises(KeyError), on_loan(module, CPU):
        assert not before.items() & {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
        raise KeyError
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before


def test_what_is_lent_is_counted_beside_its_home() -> None:
    """The estimate has no device to lend to: what it lends must take memory nevertheless."""
    module = nn.Linear(3, 3)
    with on_meta(module), LiveBytes([module]) as live, on_loan(module, META):
        assert live.now == weight_bytes(module.parameters()) == 48


@pytest.mark.usefixtures("aside")
def test_a_run_with_its_encoders_aside_trains_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "balance_every": 1}
    found = run(tiny_components("sdxl"), **settings)
    monkeypatch.setattr(Plan, "savings", Savings())
    assert same_weights(found, run(tiny_components("sdxl"), **settings))


# ---- when --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "free", "away"),
    [
        ({}, 8, True),
        ({}, 12, False),
        ({"memory": "fixed"}, 8, False),
        ({"identifier_mode": "word"}, 8, False),
        ({"gradient_checkpointing": True}, 8, True),
    ],
)
def test_they_are_set_aside_where_the_device_does_not_hold_them(
    settings: dict[str, Any], free: int, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Savings] = []

    def counted(_: Any, savings: Savings) -> Memory:
        asked.append(savings)
        return Memory(5 * GB if savings.encoders_aside else 7 * GB, GB, 0 if savings.recomputed else 4 * GB)

    monkeypatch.setattr(plan, "estimated", counted)
    monkeypatch.setattr(plan, "free_bytes", lambda device: free * GB)
    made = plan_run(tiny_components(), pictures(), quick_config(**settings), device="cpu")
    made = Plan(made.components, made.images, None, made.config, torch.device("cuda"), torch.bfloat16)
    assert made.savings.encoders_aside is away
    assert (ENCODERS_ASIDE in notes_of(made)) is away
    assert made.memory is not None and made.memory.weights == (5 if away else 7) * GB
    assert len(asked) == len(set(asked))  # an estimate of SDXL takes half a minute


def test_the_estimate_counts_one_encoder_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    parts = tiny_components("sdxl")
    made = Plan(parts, pictures(), None, quick_config(), torch.device("cuda"), torch.bfloat16)

    def told(away: bool) -> Memory:
        found = estimate.estimated(made, Savings(4, away))
        assert found is not None
        return found

    resident, away = told(False), told(True)
    sizes = [2 * sum(p.numel() for p in encoder.model.parameters()) for encoder in parts.text_encoders]
    assert resident.weights - away.weights == sum(sizes)
    assert away.step >= max(sizes) and away.in_step < resident.in_step


# ---- on a device -------------------------------------------------------------------------------------------------

on_a_device = pytest.mark.skipif(not pretend_device.AVAILABLE, reason="this torch has no device written in Python")


@pytest.mark.slow
@on_a_device
@pytest.mark.usefixtures("aside")
def test_on_a_device_they_are_in_main_memory_between_their_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[set[str]] = []
    original = update._backward

    def watched(run_: Any, loss: Tensor) -> None:
        encoders = run_.components.text_encoders
        places.append({tensor.device.type for encoder in encoders for tensor in encoder.model.parameters()})
        original(run_, loss)

    monkeypatch.setattr(update, "_backward", watched)
    settings: dict[str, Any] = {"steps": 2, "watch_drift": False}
    with pretend_device.pretend_device() as device:
        found = train(tiny_components("sdxl"), pictures(), quick_config(**settings), device=device.device)
    assert places == [{"cpu"}] * 2
    for key, tensor in run(tiny_components("sdxl"), **settings).lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@on_a_device
def test_out_of_memory_twice_they_are_the_second_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, at=0, times=2)
    recorder = Recorder()
    with pretend_device.pretend_device() as device:
        config = quick_config(steps=2, watch_drift=False)
        train(tiny_components(), pictures(), config, device=device.device, on_event=recorder)
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent)]
    assert told == [STEPPED_DOWN, ENCODERS_ASIDE] and len(recorder.steps) == 2

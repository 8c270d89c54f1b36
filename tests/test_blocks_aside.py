"""Blocks of a network that wait in main memory and visit the device to work: the same numbers, in less memory.

Not here: how many wait, and when (`test_room`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_train.adapter_kinds import KINDS
from apt_train.config import AdapterConfig
from apt_train.events import NoticeEvent
from apt_train.families.blocks_aside import BlocksAside, spread
from apt_train.training import update
from apt_train.training.memory import Savings
from apt_train.training.notes import BLOCKS_ASIDE, ENCODERS_ASIDE
from apt_train.training.on_device import adapter_on
from apt_train.training.out_of_memory import STEPPED_DOWN
from apt_train.training.plan import Plan
from apt_train.training.train import train
from tests import pretend_device
from tests.tiny import tiny_components
from tests.toy_flow import toy_flow_components
from tests.training import Recorder, out_of_memory, pictures, quick_config, run, same_weights

CPU = torch.device("cpu")
LENGTH = 5
EVERY = 1000  # more blocks than any of the networks here has
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.trained = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.frozen(x * self.trained))


class Chain(nn.Module):
    """Blocks that are recomputed one by one. `there`: whose weights are on the device, each time one begins to work."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks: Any = nn.ModuleList(Block() for _ in range(LENGTH))
        self.homes = [block.frozen.weight for block in self.blocks]
        self.there: list[set[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def watch(self) -> None:
        """Call it once some of the blocks wait."""
        self.homes = [block.frozen.weight for block in self.blocks]
        for block in self.blocks:
            block.register_forward_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        weights = [block.frozen.weight for block in self.blocks]
        self.there.append({i for i, weight in enumerate(weights) if weight is not self.homes[i]})


def learned(chain: Chain) -> list[Tensor]:
    """What comes out, and every gradient."""
    out = chain(torch.linspace(-1, 1, 12).view(3, 4))
    return [out, *torch.autograd.grad(out.square().sum(), [block.trained for block in chain.blocks])]


@pytest.mark.parametrize("count", range(LENGTH + 1))
def test_waiting_blocks_give_the_same_bits_and_gradients(count: int) -> None:
    chain = Chain()
    expected = learned(chain)
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(count)
    for _ in range(3):
        assert all(map(torch.equal, learned(chain), expected))
    aside.end()
    assert all(map(torch.equal, learned(chain), expected)) and aside.waiting == count


def test_never_more_than_two_blocks_visit_and_the_next_one_comes_ahead() -> None:
    chain = Chain()
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(LENGTH)
    chain.watch()
    for _ in range(3):
        learned(chain)
    forward, backward = list(range(LENGTH)), list(reversed(range(LENGTH)))
    order = [*forward, *backward] * 3
    assert [block in there for block, there in zip(order, chain.there, strict=True)] == [True] * len(order)
    assert max(map(len, chain.there)) == 2
    third = chain.there[4 * LENGTH :]  # by then the way through the network is known, forward and back
    assert [sorted(there) for there in third[:3]] == [[0, 1], [1, 2], [2, 3]]
    assert [sorted(there) for there in third[LENGTH + 1 : LENGTH + 3]] == [[2, 3], [1, 2]]


def test_only_what_is_fetched_ahead_is_copied_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the other copies, so a block would begin before its weights are there."""
    chain, beside = Chain(), list[int]()
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(LENGTH)
    monkeypatch.setattr(aside, "_copies_beside", lambda: contextlib.nullcontext(beside.append(1)))
    chain(torch.ones(1, 4))
    assert beside == []  # the way through the network is not known yet
    for _ in range(2):
        learned(chain)
    assert beside


def test_what_is_let_go_of_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that arrives later would land where the device's memory has a new owner."""
    chain, waited = Chain(), list[object]()
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(LENGTH)
    learned(chain)
    beside = object()
    monkeypatch.setattr(aside, "_copying", beside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=waited.append))
    aside.send(LENGTH)
    assert waited == [beside]
    aside.end()
    assert waited == [beside] * 2


def test_blocks_that_do_not_wait_are_left_alone() -> None:
    chain = Chain()
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(2)
    chain.watch()
    learned(chain)
    assert set().union(*chain.there) == {0, 2}
    assert aside.are_left and aside.waiting == 2
    aside.send(LENGTH)
    assert not aside.are_left and all(block.trained.requires_grad for block in chain.blocks)


def test_moving_the_network_leaves_what_waits() -> None:
    chain = Chain()
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(2)
    with aside.staying():
        chain.to(torch.float64)  # in place of a device
    kinds = [block.frozen.weight.dtype for block in chain.blocks]
    assert kinds == [torch.float32, torch.float64] * 2 + [torch.float64]


def test_after_an_error_in_a_block_the_weights_go_home() -> None:
    chain = Chain()
    expected = learned(chain)
    aside = BlocksAside(list(chain.blocks), CPU)
    aside.send(LENGTH)
    chain.watch()
    failing = chain.blocks[3].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learned(chain)
    failing.remove()
    aside.end()
    assert [block.frozen.weight for block in chain.blocks] == chain.homes
    assert all(map(torch.equal, learned(chain), expected))


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (7, [*range(7)])])
def test_they_are_spread_over_the_network(count: int, expected: list[int]) -> None:
    assert spread(7, count) == expected


# ---- a run ---------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "apt": {"balance_every": 1},
    "fp8, dropout": {"base_storage": "fp8", "dropout": 0.3, "targets": "attention+ff"},
    "int8, word": {"base_storage": "int8", "identifier_mode": "word"},
    "nf4": {"base_storage": "nf4"},
    "dora": {"kind": "dora", "identifier_mode": "word"},
    "tlora": {"method": "tlora"},
    "flow": {},
}


def parts(name: str) -> Any:
    return toy_flow_components() if name == "flow" else tiny_components("sdxl" if name == "apt" else "sd15")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_whose_blocks_wait_trains_to_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 2, "gradient_checkpointing": True, **RUNS[name]}
    before, model = parts(name), parts(name)
    plain = run(before, **settings)
    for count in (3, EVERY):
        count = min(count, len(model.network.blocks(model.unet)))
        everything = Savings(model.network.checkpoint_parts(model.unet), blocks_aside=count)
        monkeypatch.setattr(Plan, "savings", everything)
        assert same_weights(run(model, **settings), plain)
    assert all(map(torch.equal, model.unet.state_dict().values(), before.unet.state_dict().values()))


def test_what_a_kind_froze_is_not_trained_because_its_block_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights then begin in main memory, and move to the device, which here is another one."""

    def freeze(layer: Any, name: str, settings: AdapterConfig) -> None:
        layer.lora_A[name].weight.requires_grad_(False)

    monkeypatch.setitem(KINDS, "half", replace(KINDS["lora"], put_on=freeze))
    plan: Any = SimpleNamespace(
        components=tiny_components(), device=torch.device("meta"), config=quick_config(kind="half"),
        objective=SimpleNamespace(rank_by_timestep=False),
    )  # fmt: skip
    with adapter_on(plan) as adapter:
        assert {one.device.type for one in adapter.parameters.values()} == {"meta"}
        assert all(one.requires_grad == ("lora_B" in name) for name, one in adapter.parameters.items())


on_a_device = pytest.mark.skipif(not pretend_device.AVAILABLE, reason="this torch has no device written in Python")


@on_a_device
def test_those_that_are_sent_leave_the_device_at_once_and_come_back_to_work() -> None:
    with pretend_device.pretend_device() as device:
        chain = Chain().to(device.device)
        BlocksAside(list(chain.blocks), device.device).send(1)
        assert [block.frozen.weight.device.type for block in chain.blocks] == ["cpu"] + [pretend_device.NAME] * 4
        chain.blocks[0](torch.ones(1, 4).to(device.device))
        assert chain.blocks[0].frozen.weight.device.type == pretend_device.NAME


@pytest.mark.slow
@on_a_device
@pytest.mark.parametrize("storage", ["fp8", "nf4"])
def test_on_a_device_they_are_in_main_memory_between_the_passes(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    original = update._backward

    def watched(run_: Any, loss: Tensor) -> None:
        unet = run_.components.unet
        frozen = [
            {one.device.type for one in block.parameters() if not one.requires_grad}
            for block in run_.components.network.blocks(unet)
        ]
        places.append(sum(found == {"cpu"} for found in frozen) - len(frozen))
        assert all(one.device.type == pretend_device.NAME for one in unet.parameters() if one.requires_grad)
        original(run_, loss)

    settings: dict[str, Any] = {"steps": 2, "watch_drift": False, "base_storage": storage}
    monkeypatch.setattr(update, "_backward", watched)
    model = tiny_components("sdxl")
    monkeypatch.setattr(Plan, "savings", Savings(2, True, len(model.network.blocks(model.unet))))
    with pretend_device.pretend_device() as device:
        found = train(model, pictures(), quick_config(**settings), device=device.device)
    assert len(places) == 2 and all(-2 <= visiting <= -1 for visiting in places)
    monkeypatch.undo()
    for key, tensor in run(tiny_components("sdxl"), **settings).lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@on_a_device
def test_out_of_memory_again_and_again_they_are_the_last_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, at=0, times=3)
    recorder = Recorder()
    config = quick_config(steps=2, watch_drift=False)
    with pretend_device.pretend_device() as device:
        found = train(tiny_components(), pictures(), config, device=device.device, on_event=recorder)
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent)]
    assert told == [STEPPED_DOWN, ENCODERS_ASIDE, BLOCKS_ASIDE] and len(recorder.steps) == 2
    monkeypatch.undo()
    for key, tensor in run(steps=2, watch_drift=False).lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=2e-4)

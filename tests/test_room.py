"""Memory before and while a run trains: estimated, told, one rung down where it runs out, a word where it spills.

Not here: how bytes are counted (`test_memory_bench`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from apt_train.data.latent_bank import LatentBank
from apt_train.errors import InputError
from apt_train.events import NoticeEvent, PlanEvent, StopTraining
from apt_train.run.log import read_log
from apt_train.training import estimate, live_bytes, loop, pace, plan, previewing, update, vae_visits
from apt_train.training.memory import Memory, Savings, blocks_too_many, fits, free_bytes
from apt_train.training.notes import BLOCKS_ASIDE, notes_of
from apt_train.training.out_of_memory import STEPPED_DOWN, is_out_of_memory
from apt_train.training.plan import Plan, plan_run
from tests.tiny import tiny_components
from tests.training import Recorder, out_of_memory, pictures, quick_config, run, same_weights

ROOT = Path(__file__).resolve().parent.parent
GB = 10**9
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a tiny model is estimated."""
    monkeypatch.setattr(estimate, "SMALL", 0)


def planned(kind: str = "sd15", device: str = "cpu", **settings: Any) -> Plan:
    found = plan_run(tiny_components(kind), pictures(), quick_config(**settings), device="cpu")
    return Plan(found.components, found.images, None, found.config, torch.device(device), found.dtype)


def notices(recorder: Recorder) -> list[str]:
    return [event.text for event in recorder.events if isinstance(event, NoticeEvent)]


# ---- the estimate ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("apt", "512", "off"), ("dreambooth", "512", "on")])
def test_the_estimate_is_within_15_percent_of_what_a_run_takes(arguments: tuple[str, ...]) -> None:
    """Of main memory, with an allocator that gives back at once what is freed, as the estimate has it."""
    variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.measured_memory", *arguments], cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "dreambooth", "identifier_mode": "word"}, {"method": "tlora"}, {"kind": "dora"}],
)
def test_estimating_leaves_the_model_and_the_run_as_they_were(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, settings = tiny_components(), {"watch_drift": False, "steps": 1, **settings}
    weights = {name: id(tensor) for name, tensor in parts.unet.named_parameters()}
    found = Plan(parts, pictures(), None, quick_config(**settings), torch.device("cpu"), torch.float32).memory
    assert found is not None and min(found.weights, found.adapter, found.step) > 0
    assert {name: id(tensor) for name, tensor in parts.unet.named_parameters()} == weights
    after = run(parts, **settings)
    monkeypatch.undo()
    assert same_weights(after, run(**settings))


@pytest.mark.usefixtures("counted")
def test_the_estimate_follows_the_settings() -> None:
    def of(**settings: Any) -> Memory:
        found = planned("sd15", **settings).memory
        assert found is not None
        return found

    plain = of()
    assert of(gradient_checkpointing=True).step < plain.step < of(batch_size=4).step
    assert of(method="dreambooth").step < plain.step
    assert of(rank=8).adapter > 1.5 * plain.adapter
    assert plain.vae is not None and of(adaptive_augmentation=False).vae is None
    previewed = of(preview_every=1).vae
    assert previewed is not None and previewed > plain.vae
    assert plain.peak(makes_way=False) == max(plain.in_step, plain.beside_vae)


def test_the_vae_is_estimated_where_it_works_and_as_its_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU its weights are counted with those that stay. A fused kernel keeps no scores of its attention."""
    here, there = planned(), planned(device="cuda")
    activations, all_of_it = estimate._vae(here), estimate._vae(there)
    assert here.components.vae is not None and activations is not None and all_of_it is not None
    assert all_of_it - activations == live_bytes.weight_bytes(here.components.vae.parameters())
    monkeypatch.setattr(estimate, "as_on_a_gpu", lambda **_: contextlib.nullcontext())
    plain = estimate._vae(here)
    assert plain is not None and plain > activations
    hosts = replace(here, components=replace(here.components, vae=None))
    assert estimate._vae(hosts) is None


@pytest.mark.usefixtures("counted")
def test_what_is_recomputed_is_estimated_on_the_oldest_torch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before version 2.6 it asks `torch.meta` for a random state, and there is no such module."""
    today = planned("sd15", gradient_checkpointing=True).memory
    monkeypatch.setattr(checkpoint, "_get_device_module", lambda device: getattr(torch, device))
    assert planned("sd15", gradient_checkpointing=True).memory == today is not None
    assert not hasattr(torch, "meta")


# ---- what is told ------------------------------------------------------------------------------------------------


def test_the_plan_is_told_once_before_the_first_step() -> None:
    recorder = Recorder()
    run(steps=2, watch_drift=False, on_event=recorder)
    (told,) = [event for event in recorder.events if isinstance(event, PlanEvent)]
    assert recorder.events.index(told) < recorder.events.index(recorder.steps[0])
    assert (told.steps, told.device, told.dtype, told.pictures, told.captions) == (2, "cpu", "fp32", 3, 0)
    assert told.memory is None  # too small to matter
    assert told.text == "2 steps in fp32 on cpu \u00b7 3 pictures of about 64 x 64 pixels, 0 with a caption"
    assert replace(told, steps=1, pictures=1).text.startswith("1 step in fp32 on cpu \u00b7 1 picture of about 64 x 64")


def test_the_plan_names_what_it_takes_of_what_is_free() -> None:
    told = PlanEvent(2000, "cuda", "bf16", 5, 5, 1024, True, memory=8_300_000_000, free=11_200_000_000)
    assert told.text.endswith("about 8.3 GB of the 11.2 GB that are free \u00b7 with gradient checkpointing")
    assert replace(told, parts=(1, 3)).text.endswith("\u00b7 with gradient checkpointing in 1 of 3 parts")


# ---- the time of a step, tried before the first ----------------------------------------------------------------------

TRIED: dict[str, dict[str, Any]] = {
    "apt": {},
    "tlora, dropout, accumulation": {"method": "tlora", "dropout": 0.5, "accumulation": 2, "identifier_mode": "word"},
    "prior preservation": {"method": "dreambooth", "prior_images": pictures(seed=5)},
}


@pytest.mark.parametrize("name", TRIED)
def test_trying_a_step_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 2, "watch_drift": False, **TRIED[name]}
    plain, seconds = run(**settings), list[float | None]()
    monkeypatch.setattr(loop, "seconds_left", lambda run_: seconds.append(pace.tried(run_)))
    assert same_weights(run(**settings), plain)
    assert len(seconds) == 1 and (seconds[0] or 0) > 0


def test_the_plan_says_how_long_the_steps_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device, of the steps that are left; a small model is done before anybody has read it."""
    monkeypatch.setattr(pace, "tried", lambda run_: 1.5)

    def left(place: str, memory: Memory | None, steps_done: int = 0) -> float | None:
        made = planned(device=place, steps=2000)
        vars(made)["memory"] = memory
        known: Any = SimpleNamespace(device=made.device, plan=made, config=made.config, steps_done=steps_done)
        return pace.seconds_left(known)

    large = Memory(GB, GB, GB)
    assert left("cuda", large) == 3000 and left("cuda", large, 500) == 2250
    assert left("cuda", None) is None and left("cpu", large) is None
    monkeypatch.setattr(pace, "tried", lambda run_: None)
    assert left("cuda", large) is None
    told = PlanEvent(2000, "cuda", "bf16", 5, 5, 1024, False, seconds=3000)
    assert told.text.startswith("2000 steps in bf16 on cuda \u00b7 about 50 min without samples \u00b7 5 pictures")


def test_the_first_trial_warms_up_and_the_second_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [0.0]
    takes = iter([60.0, 2.0])
    monkeypatch.setattr(pace, "dry_passes", lambda run_: passed.append(passed[-1] + next(takes)))
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: passed[-1]))
    known: Any = MagicMock(device=torch.device("cpu"))
    assert pace.tried(known) == 2


def test_a_trial_that_fails_is_not_told_and_the_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(steps=2, watch_drift=False)
    monkeypatch.setattr(loop, "seconds_left", pace.tried)
    broken = iter([True])

    def fails(run_: Any, loss: torch.Tensor) -> None:
        loss.backward()
        if next(broken, False):
            raise torch.cuda.OutOfMemoryError("out of memory")

    recorder = Recorder()
    monkeypatch.setattr(update, "_backward", fails)
    assert same_weights(run(steps=2, watch_drift=False, on_event=recorder), plain)
    assert [event.seconds for event in recorder.events if isinstance(event, PlanEvent)] == [None]


# ---- auto --------------------------------------------------------------------------------------------------------


PARTS = 2  # of the tiny networks
LADDER = {
    Savings(0): Memory(2 * GB, GB, 9 * GB),
    Savings(1): Memory(2 * GB, GB, 6 * GB),
    Savings(PARTS): Memory(2 * GB, GB, 3 * GB),
    Savings(PARTS, True): Memory(GB, GB, 3 * GB, blocks=(100_000_000,) * 8),
}


@pytest.mark.parametrize(
    ("free", "settings", "expected"),
    [
        (40, {}, Savings(0)),
        (11, {}, Savings(1)),
        (8, {}, Savings(PARTS)),
        (6.5, {}, Savings(PARTS, True)),
        (6, {}, Savings(PARTS, True, 4)),  # 0.2 GB too many: two of four, as the other two are on the device
        (1, {}, Savings(PARTS, True, 8)),
        (11, {"gradient_checkpointing": True}, Savings(PARTS)),
        (6, {"gradient_checkpointing": True}, Savings(PARTS, True, 4)),
        (1, {"gradient_checkpointing": False}, Savings(0, True)),  # blocks wait only where they are recomputed
        (6, {"identifier_mode": "word"}, Savings(PARTS, False, 0)),
        (1, {"memory": "fixed"}, Savings(0)),  # sd15
        (1, {"memory": "fixed", "gradient_checkpointing": True}, Savings(PARTS)),
    ],
)
def test_auto_saves_no_more_memory_than_it_must(
    free: float, settings: dict[str, Any], expected: Savings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(_: Any, savings: Savings) -> Memory:
        return LADDER.get(savings) or replace(LADDER[Savings(PARTS, True)], step=9 * GB)

    monkeypatch.setattr(plan, "estimated", counted)
    monkeypatch.setattr(plan, "free_bytes", lambda device: int(free * GB))
    made = planned(device="cuda", **settings)
    assert made.savings == expected
    if expected.blocks_aside not in (0, 8):
        assert made.memory is not None and fits(made.memory, int(free * GB))
        assert not fits(LADDER[Savings(PARTS, True)].with_aside(expected.blocks_aside - 1), int(free * GB))
    assert (BLOCKS_ASIDE in notes_of(made)) is (expected.blocks_aside > 0)


def test_a_system_may_hide_how_much_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    assert free_bytes(torch.device("cpu")) is None


def test_the_defaults_where_nothing_is_known_of_the_memory() -> None:
    assert planned("sdxl", device="cuda", memory="fixed").savings == Savings(PARTS)
    assert planned("sd15", device="cuda", memory="fixed").savings == Savings(0)
    assert planned(device="cpu").savings == Savings(0)
    assert planned(device="cpu", gradient_checkpointing=True).savings == Savings(PARTS)


def test_two_of_the_waiting_blocks_are_on_the_device() -> None:
    memory = Memory(10 * GB, GB, GB, blocks=(GB, 2 * GB, GB, 3 * GB))
    assert [memory.with_aside(count).weights // GB for count in range(5)] == [10, 10, 10, 9, 8]
    assert blocks_too_many(memory, 1000 * GB) == 0 and blocks_too_many(memory, GB) == 4
    assert blocks_too_many(Memory(GB, GB, GB), GB) == 0  # of a network without such blocks


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_each_part_that_is_recomputed_takes_less(kind: str) -> None:
    made = planned(kind)

    def step(recomputed: int) -> int:
        found = made._estimated(Savings(recomputed))
        assert found is not None
        return found.step

    assert step(0) > step(1) > step(2)


@pytest.mark.parametrize("recomputed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_whichever_parts_are_recomputed_the_run_is_the_same(
    kind: str, recomputed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointed: list[int] = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: (checkpointed.append(1), original(*a, **k))[1])
    monkeypatch.setattr(Plan, "savings", Savings(recomputed))
    settings: dict[str, Any] = {"steps": 2, "watch_drift": False, "method": "dreambooth", "identifier_mode": "word"}
    found, calls = run(tiny_components(kind), **settings), len(checkpointed)
    monkeypatch.setattr(Plan, "savings", Savings(0))
    assert same_weights(found, run(tiny_components(kind), **settings))
    assert (calls == 0) is (recomputed == 0) and calls % 2 == 0


@pytest.mark.parametrize("encoding", [GB, 20 * GB])
def test_a_vae_that_the_network_makes_way_for_recomputes_nothing(
    encoding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the network it would not fit, but the two are never there together."""
    monkeypatch.setattr(plan, "estimated", lambda *_: Memory(10 * GB, GB, GB // 2, encoding + GB))
    monkeypatch.setattr(plan, "free_bytes", lambda device: 14 * GB)
    made = planned(device="cuda")
    assert made.sets_aside and made.savings == Savings()


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_what_torch_holds_without_using_it_is_free(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.get_device_module(kind)
    for name, found in {"mem_get_info": (5, 24), "memory_reserved": 4, "memory_allocated": 3}.items():
        monkeypatch.setattr(module, name, lambda device, found=found: found, raising=False)
    assert free_bytes(torch.device(kind)) == 6


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_a_gpu_that_does_not_tell_its_free_memory(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The step down to a leaner mode then waits until memory runs out."""

    def silent(device: torch.device) -> tuple[int, int]:
        raise error("The device does not support querying the available free memory.")

    monkeypatch.setattr(torch.xpu, "mem_get_info", silent, raising=False)
    assert free_bytes(torch.device("xpu")) is None


def test_fitting_leaves_room_for_what_is_not_counted() -> None:
    assert fits(Memory(3 * GB, GB, GB), 7 * GB) and not fits(Memory(3 * GB, GB, GB), 6 * GB)


# ---- out of memory -----------------------------------------------------------------------------------------------


FULL = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Linux": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"),
    "Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: you tried"),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "Intel": RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "Python": MemoryError(),
}
each_full = pytest.mark.parametrize("error", FULL.values(), ids=FULL)


@each_full
def test_out_of_memory_is_known_wherever_it_comes_from(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@each_full
def test_no_room_for_the_vae_is_told_on_every_system(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputing would make none: nothing is alive between the steps."""

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LatentBank, "ensure_variants", full)
    with pytest.raises(InputError, match="VAE encodes augmented pictures.*identifier_mode word.*adaptive_augmentation"):
        run(steps=1, watch_drift=False)


@pytest.mark.parametrize("at", [0, 2])
def test_out_of_memory_a_run_steps_down_once_and_loses_nothing(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(watch_drift=False)
    out_of_memory(monkeypatch, at=at)
    recorder = Recorder()
    found = run(on_event=recorder, watch_drift=False)
    assert notices(recorder) == [STEPPED_DOWN]
    assert [event.step for event in recorder.steps] == [1, 2, 3, 4]
    for key, tensor in plain.lora.items():  # recomputed activations may differ in the last digit
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=1e-4)


def test_a_stop_asked_for_at_the_notice_ends_the_run_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, NoticeEvent):
            raise StopTraining

    out_of_memory(monkeypatch, at=1)
    found = run(on_event=stop, watch_drift=False)
    assert found.stopped and found.steps_done == 2 and found.notices == [STEPPED_DOWN]


def test_a_scaled_step_is_taken_again_also_where_its_gradients_were_unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp16; the CPU has a scaler, too. Clipping makes copies, which may be what there is no memory for."""
    scaler = partial(torch.amp.GradScaler, init_scale=8.0, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device))
    original, left = torch.nn.utils.clip_grad_norm_, [0]

    def clip(*arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    plain, left[0] = run(watch_drift=False), 2
    found = run(watch_drift=False)
    for key, tensor in plain.lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"memory": "fixed"}, {"gradient_checkpointing": True}])
def test_where_there_is_no_rung_left_it_says_what_to_lower(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory(monkeypatch, at=0)
    with pytest.raises(InputError, match="base_storage to int8.*lower resolution"):
        run(watch_drift=False, **settings)


def test_out_of_memory_twice_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, at=1, times=2)
    with pytest.raises(InputError, match="base_storage to int8.*lower resolution"):
        run(watch_drift=False)


# ---- spilling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "at"),
    [([9, *[1] * 5, *[11] * 9], 11), ([9, *[1] * 5, *[9] * 9], None), ([1] * 6 + [60, 1, 1, 1, 1, 60, 60], None)],
)
def test_steps_ten_times_slower_than_the_first_are_told_once(seconds: list[float], at: int | None) -> None:
    """One slow step, as where pictures are encoded, is none of it; nor is the first step, which warms up."""
    watched = pace.Pace(torch.device("cuda"))
    assert [number for number, one in enumerate(seconds, 1) if watched.is_news(one)] == ([at] if at else [])
    assert not any(map(pace.Pace(torch.device("cpu")).is_news, seconds))


# ---- the VAE, with the network aside -----------------------------------------------------------------------------


def test_the_network_makes_way_for_the_vae_where_both_would_be_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, aside in ((3 * GB, True), (GB // 2, False), (None, False)):
        monkeypatch.setattr(plan, "estimated", lambda *_, e=encoding: Memory(2 * GB, GB, GB, e))
        assert planned(device="cuda", memory="fixed").sets_aside is aside
        assert planned(device="cpu").sets_aside is False


@pytest.mark.parametrize("blocks", [0, 3])
def test_the_plan_tells_what_the_vae_takes_where_the_network_has_made_way(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a step, if the base is small; and blocks that wait are not there to make way."""
    memory = Memory(weights=4 * GB, adapter=GB, step=GB, vae=7 * GB, network=3 * GB, blocks=(GB,) * 3)
    monkeypatch.setattr(plan, "estimated", lambda *_: memory)
    monkeypatch.setattr(Plan, "savings", Savings(PARTS, blocks_aside=blocks))
    made = planned(device="cuda")
    monkeypatch.setattr(plan, "free_bytes", lambda device: None)
    assert made.sets_aside and made.event.memory == 9 * GB
    assert replace(memory, vae=GB).peak(makes_way=True) == memory.in_step


def test_a_vae_that_there_is_no_room_for_leaves_the_device_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its weights had moved. Training goes on without previews, and needs their room."""
    parts, places = tiny_components(), list[str]()

    def move(place: Any) -> None:
        places.append(str(place))
        if places == ["cuda"]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(parts.vae, "to", move)
    with pytest.raises(torch.OutOfMemoryError), vae_visits.vae_on(parts, torch.device("cuda")):
        pass
    assert places == ["cuda", "cpu"]


def test_what_torch_holds_unused_is_given_back_before_the_vae_works_and_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, order = tiny_components(), list[str]()

    @contextlib.contextmanager
    def aside(*_: Any) -> Generator[None]:
        order.append("the network leaves")
        yield
        order.append("the network returns")

    monkeypatch.setattr(vae_visits, "_aside", aside)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("given back"))
    monkeypatch.setattr(parts.vae, "to", lambda place: order.append(f"the VAE on {place}"))
    with vae_visits.vae_on(parts, torch.device("cuda"), alone=True):
        order.append("work")
    assert order == [
        *("the network leaves", "given back", "the VAE on cuda", "work"),
        *("the VAE on cpu", "given back", "the network returns"),
    ]


def test_what_is_frozen_moves_and_what_is_trained_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network, moved = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)), list[int]()
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, place: (moved.append(tensor.data_ptr()), tensor)[1])
    with vae_visits._aside(network, torch.device("cpu")):
        assert moved == [one.data_ptr() for one in network[0].parameters()]
    assert moved == [one.data_ptr() for one in network[0].parameters()] * 2


def test_aside_and_back_the_weights_are_the_same_and_what_is_trained_stays() -> None:
    first = nn.Linear(3, 3).requires_grad_(False)
    network = nn.Sequential(first, second := nn.Linear(3, 3))
    frozen, trained = first.weight, second.weight
    before, place = frozen.data, trained.data_ptr()
    with vae_visits._aside(network, torch.device("cpu")):
        assert trained.data_ptr() == place and frozen.device.type == "cpu"
    assert first.weight is frozen and torch.equal(frozen, before)


def test_what_a_failed_vae_has_made_is_gone_before_the_network_returns() -> None:
    """Its error would hold it, and there may be no room for both."""
    made: list[weakref.ref[torch.Tensor]] = []

    def decode() -> None:
        activations = torch.zeros(3)
        made.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as held, vae_visits._aside(nn.Linear(3, 3), torch.device("cpu")):
        decode()
    assert held.tb is not None and made[0]() is None


def test_what_was_fetched_ahead_has_arrived_before_the_network_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it comes on a stream of its own, and half a weight would be kept."""
    order: list[str] = []
    network = nn.Linear(3, 3)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append(str(device)))
    monkeypatch.setattr(network, "parameters", lambda: order.append("parameters") or iter(()))
    with vae_visits._aside(network, torch.device("cuda:1")):
        assert order == ["cuda:1", "parameters"]
    with vae_visits._aside(network, torch.device("cpu")):
        assert order == ["cuda:1", "parameters", "parameters"]


def test_a_network_that_cannot_return_ends_the_run_with_its_steps_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Samples are drawn for which it makes way. A run can do without those, but not without the network."""
    parts = tiny_components()

    @contextlib.contextmanager
    def aside(*_: Any, **__: Any) -> Generator[None]:
        with vae_visits._aside(parts.unet, torch.device("cpu")):
            yield
            monkeypatch.setattr(torch.Tensor, "to", refuse)

    def refuse(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(previewing, "vae_on", aside)
    with pytest.raises(InputError, match="finds no room to return: free memory, then resume"):
        run(parts, preview_every=2, output_dir=tmp_path)
    assert run(steps=4, output_dir=tmp_path, resume=True).steps_done == 4
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl").lines] == [1, 2, 3, 4]


def test_weightless_modules_are_as_before_whatever_happens() -> None:
    module = nn.BatchNorm1d(4)
    tensors = [id(tensor) for tensor in module.state_dict(keep_vars=True).values()]
    with pytest.raises(KeyError), live_bytes.on_meta(module, torch.bfloat16):
        assert module.weight.is_meta and module.weight.dtype == torch.bfloat16
        raise KeyError
    assert [id(tensor) for tensor in module.state_dict(keep_vars=True).values()] == tensors

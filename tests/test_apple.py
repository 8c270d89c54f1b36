"""Apple's GPU, without one: a run and a check-up use only what it knows, and what it cannot do is refused beforehand.

Not here: the pretended device itself (`pretend_apple`), the same on any other device (`test_pretend_device`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from apt_train.console.progress import Progress
from apt_train.errors import InputError
from apt_train.families.blocks_aside import BlocksAside
from apt_train.families.swapped import on_loan
from apt_train.lora_check.asked import Asked
from apt_train.lora_check.blocks import blocks_of
from apt_train.lora_check.check_up import check_up
from apt_train.lora_check.findings import CheckUp
from apt_train.lora_check.lora_file import sorted_lora
from apt_train.lora_check.subject import Subject
from apt_train.lora_check.with_lora import lora_ready
from apt_train.presets import PRESETS
from apt_train.rng import seeded
from apt_train.sample import trajectories
from apt_train.training import device, estimate, interruptible, loop, out_of_memory, plan, update
from apt_train.training.device import resolve_device
from apt_train.training.memory import Memory, Savings, empty_cache, free_bytes, keep_to_the_recommended
from apt_train.training.out_of_memory import leaner_mode
from apt_train.training.plan import Plan, plan_run
from tests import pretend_device
from tests.lora_files import attention_paths, kohya, random_layers
from tests.pretend_apple import pretend_apple, without_kernel
from tests.pretend_device import Device
from tests.test_pretend_device import RUNS, trained
from tests.tiny import tiny_components
from tests.training import pictures, quick_config

GB = 10**9
MPS = torch.device("mps")
pretended = pytest.mark.skipif(not pretend_device.AVAILABLE, reason="this torch cannot be given a device in Python")
pytestmark = pytest.mark.usefixtures("one_thread", "no_report")


@pytest.fixture
def apple() -> Iterator[Device]:
    with pretend_apple() as found:
        yield found


@pytest.fixture
def weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a module leaves its parameters the same objects, as on a real device."""
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)


@pytest.fixture
def knows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were such a device, with every number format."""
    monkeypatch.setattr(device, "holds", lambda device, dtype: True)


def planned(kind: str = "sd15", **settings: Any) -> Plan:
    found = plan_run(tiny_components(kind), pictures(), quick_config(**settings), device="cpu")
    return replace(found, device=MPS)


# ---- what it computes with -----------------------------------------------------------------------------------------


@pretended
def test_the_pretended_device_lacks_what_apples_lacks(apple: Device) -> None:
    there = torch.ones(2, 2).to(apple.device)
    for dtype in (torch.float64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match="does not have support"):
            there.to(dtype)
    with pytest.raises(RuntimeError, match="nothing waits"):
        torch.ones(2).to(apple.device, non_blocking=True)
    assert "frexp.Tensor_out" in without_kernel() and not {"add.Tensor", "mm", "silu"} & without_kernel()


@pretended
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_there_as_on_the_cpu(name: str, apple: Device) -> None:
    found, expected = trained(apple, name), trained("cpu", name)
    for key, tensor in expected.lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=2e-4)


@pretended
def test_a_step_works_there(apple: Device) -> None:
    assert trained(apple, "apt", steps=1).steps_done == 1


@pretended
@pytest.mark.slow
def test_a_run_there_measures_draws_and_resumes(tmp_path: Path, apple: Device) -> None:
    more: dict[str, Any] = {"watch_drift": True, "snapshot_every": 1, "output_dir": tmp_path / "run"}
    trained(apple, "apt", steps=1, preview_every=1, **more)
    assert trained(apple, "apt", steps=2, resume=True, **more).steps_done == 2


@pretended
def test_blocks_are_measured_there(apple: Device, weights_stay: None) -> None:
    parts = tiny_components()
    file = sorted_lora(kohya(random_layers(parts.unet, attention_paths(parts.unet)[:1])), "mine")
    with lora_ready(parts, file, apple.device, "fp32") as there:
        assert blocks_of(there)[0].moved > 0


@pretended
@pytest.mark.slow
def test_a_check_up_there_finds_what_it_finds_on_the_cpu(
    apple: Device, weights_stay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "STEPS", 2)

    def found(device: torch.device | str) -> CheckUp:
        parts = tiny_components()
        file = sorted_lora(kohya(random_layers(parts.unet, attention_paths(parts.unet))), "mine")
        asked = Asked(strengths=(1.0,), resolution=32, draws=1, bins=2, rows=4, sample_steps=0, device=device)
        return check_up(parts, file, Subject.of(file, "toy", "toy"), asked, images=pictures(1))

    there, here = found(apple.device), found("cpu")
    assert [block.moved for block in there.blocks] == pytest.approx([block.moved for block in here.blocks])
    gains = [one.points[0].gain for one in (there, here)]
    assert gains[0] is not None and gains[1] is not None and gains[0].mean == pytest.approx(gains[1].mean, rel=1e-3)


@pretended
def test_weights_that_visit_it_are_waited_for(apple: Device) -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    blocks = [nn.Sequential(layer) for _ in range(2)]
    with on_loan(layer, apple.device):
        assert layer.weight.device == apple.device
    aside = BlocksAside(blocks, apple.device)
    aside.send(2)
    blocks[0](torch.ones(2).to(apple.device))
    assert layer.weight.device == apple.device


@pretended
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_storage": "fp8"}, "base_storage is fp8.*choose int8"),
        ({"precision": "fp16"}, "precision is fp16.*choose another"),
    ],
    ids=str,
)
def test_number_formats_that_it_lacks_are_refused(settings: dict[str, Any], told: str, apple: Device) -> None:
    """In torch 2.4 scaling back what was computed in fp16 needs float64, which the pretended device stands for."""
    with pytest.raises(InputError, match=told):
        trained(apple, "apt", **settings)


@pretended
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_is_refused(preset: str, apple: Device) -> None:
    settings = quick_config(**PRESETS[preset].values)
    plan_run(tiny_components(), pictures(), settings, device=apple.device).check()


def test_a_number_format_that_an_older_system_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "holds", lambda device, dtype: dtype != torch.bfloat16)
    with pytest.raises(InputError, match="precision is bf16.*choose another"):
        planned(precision="bf16").check()


@pytest.mark.usefixtures("knows_all")
def test_what_it_computes_wrongly_is_refused() -> None:
    refused: list[dict[str, Any]] = [{"channels_last": True}, {"dropout": 0.1}, {"dropout": 0.1, "memory": "fixed"}]
    for settings in (*refused, {"dropout": 0.1, "gradient_checkpointing": False}):
        with pytest.raises(InputError, match=next(iter(settings))):
            planned(**settings).check()
    planned(dropout=0.1, gradient_checkpointing=False, memory="fixed").check()
    for preset in PRESETS.values():
        planned(**preset.values).check()


@pytest.mark.parametrize("offered", [True, False])
def test_a_vae_works_where_torch_has_no_autocast(offered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.4 has none for Apple's GPU, and refuses even to switch it off."""
    asked: list[str] = []
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **more: (asked.append(kind), autocast(kind, **more))[1])
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: offered)
    tiny_components().decode(torch.zeros(1, 4, 4, 4))
    assert asked == ["cpu"] * offered


def test_draws_on_it_are_seeded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Any] = [torch.tensor([7])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda *_: states[-1])
    monkeypatch.setattr(torch.mps, "manual_seed", states.append)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, *_: states.append(state))
    for _ in range(2):
        with seeded(1, "dropout", device="mps"):
            pass
    before, first, restored, second, last = states
    assert first == second and before is restored is last


# ---- its memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What torch says of the GPU's memory."""
    found = {"driver_allocated_memory": 3, "current_allocated_memory": 2, "recommended_max_memory": 10}
    for name in found:
        monkeypatch.setattr(torch.mps, name, lambda name=name: found[name], raising=False)
    return found


def test_its_free_memory_is_the_machines_up_to_what_the_driver_recommends(
    told: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for available, expected in ((100, 8), (4, 5)):  # with the one that torch holds without using it
        monkeypatch.setattr(psutil, "virtual_memory", lambda found=available: SimpleNamespace(available=found))
        assert free_bytes(MPS) == expected
    monkeypatch.delattr(torch.mps, "recommended_max_memory")
    assert free_bytes(MPS) is None  # torch 2.4


@pytest.mark.parametrize(("free", "expected"), [(100, Savings(0)), (1, Savings(2))])
def test_nothing_makes_room_by_moving_within_the_same_memory(
    free: int, expected: Savings, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Memory(5 * GB, GB, GB, 30 * GB, 4 * GB, (GB, GB))
    monkeypatch.setattr(plan, "estimated", lambda *_: large)
    monkeypatch.setattr(plan, "free_bytes", lambda device: free * GB)
    made = planned()
    assert made.savings == expected and not made.sets_aside
    conditioner = SimpleNamespace(identifier=object(), is_aside=False)
    run: Any = SimpleNamespace(
        recomputed=2, device=MPS, components=made.components, config=made.config, updating=False,
        inputs=SimpleNamespace(conditioner=conditioner), blocks=SimpleNamespace(are_left=True),
    )  # fmt: skip
    assert leaner_mode(run) is None


def test_its_attention_keeps_whole_maps_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has kernels there that keep none, but only without gradients."""
    monkeypatch.setattr(estimate, "SMALL", 0)
    made = planned(identifier_mode="word", method="dreambooth")
    there, elsewhere = (replace(made, device=torch.device(kind))._estimated(Savings()) for kind in ("mps", "cuda"))
    assert there is not None and elsewhere is not None and there.step > 1.2 * elsewhere.step


def test_what_torch_holds_without_using_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for module in (torch.cuda, torch.mps, torch.xpu):
        monkeypatch.setattr(module, "empty_cache", lambda name=module.__name__: emptied.append(name))
    for kind in ("cpu", "mps", "cuda", "xpu"):
        empty_cache(torch.device(kind))
    assert emptied == ["torch.mps", "torch.cuda", "torch.xpu"]


def test_after_failed_work_and_before_a_step_is_repeated_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for module in (interruptible, out_of_memory):
        monkeypatch.setattr(module, "empty_cache", lambda device, name=module.__name__: emptied.append(name))

    def failing(_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(loop, "catch_up", lambda outcome, _: out_of_memory.forget(outcome.run))
    trained("cpu", "apt", steps=1)
    run: Any = SimpleNamespace(components=tiny_components(), device=MPS, steps_done=0)
    assert interruptible.attempted(run, lambda _: None, "drift", 1, failing) == (None, "no room")
    assert emptied == ["apt_train.training.out_of_memory", "apt_train.training.interruptible"]


def test_each_step_ends_within_what_the_driver_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []
    monkeypatch.setattr(update, "keep_to_the_recommended", seen.append)
    trained("cpu", "apt", steps=2)
    assert seen == [torch.device("cpu")] * 2


def test_what_is_in_main_memory_counts_there_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    made = planned(preview_every=1)
    apples, cpus, other = (
        replace(made, device=torch.device(kind))._estimated(Savings()) for kind in ("mps", "cpu", "cuda")
    )
    assert apples is not None and cpus is not None and other is not None
    assert (apples.weights, apples.vae) == (cpus.weights, cpus.vae) != (other.weights, other.vae)


def test_what_torch_holds_stays_within_what_the_driver_recommends(
    told: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(told["driver_allocated_memory"]))
    for told["driver_allocated_memory"] in (10, 11):
        keep_to_the_recommended(MPS)
        keep_to_the_recommended(torch.device("cpu"))
    assert emptied == [11]


@pytest.mark.parametrize("device", [None, "mps", "cpu"])
def test_progress_shows_what_torch_has_of_its_memory(
    device: str | None, told: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    told["driver_allocated_memory"] = 77 * GB
    assert (Progress(device)._memory() == ", 77.0 GB") is (device != "cpu")


def test_it_is_the_usual_device_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    assert resolve_device(None) == MPS and resolve_device("cpu").type == "cpu"


def test_a_virtual_one_without_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*size: int, device: Any) -> torch.Tensor:
        if torch.device(device) == MPS:
            raise RuntimeError("MPS backend out of memory")
        return torch.ones(size)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", none_left)
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(InputError, match="device mps cannot be used"):
        resolve_device("mps")

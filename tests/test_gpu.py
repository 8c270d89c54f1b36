"""What only a GPU can show; run by `python dev.py bench gpu`, or with `-m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apt_train.families.blocks_aside import BlocksAside
from apt_train.families.storage import STORAGES
from apt_train.training import vae_visits
from apt_train.training.memory import Savings
from apt_train.training.plan import Plan, plan_run
from apt_train.training.setup import prepared_run
from apt_train.training.train import train
from apt_train.training.update import optimizer_step
from tests.tiny import tiny_components
from tests.training import pictures, quick_config, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
    pytest.mark.usefixtures("no_report"),
]
ON_GPU: dict[str, Any] = {"steps": 4, "watch_drift": False, "precision": "fp32"}


def trained(**settings: Any) -> Any:
    given = {key: settings.pop(key) for key in ("output_dir", "resume") if key in settings}
    return train(tiny_components(), pictures(), quick_config(**{**ON_GPU, **settings}), device="cuda", **given)


def test_the_optimizer_is_fused_and_goes_on_from_the_cpu_and_back(tmp_path: Path) -> None:
    run(**{**ON_GPU, "steps": 2}, output_dir=tmp_path)
    assert trained(steps=3, output_dir=tmp_path, resume=True).steps_done == 3
    assert run(**ON_GPU, output_dir=tmp_path, resume=True).steps_done == 4
    with prepared_run(plan_run(tiny_components(), pictures(), quick_config(), device="cuda"), print) as found:
        assert all(group["fused"] for group in found.optimizer.param_groups)


def test_a_step_waits_for_the_gpu_once() -> None:
    """By torch's own watch over synchronising calls."""
    config = quick_config(adaptive_augmentation=False, precision="bf16")
    with prepared_run(plan_run(tiny_components(), pictures(), config, device="cuda"), lambda text: None) as found:
        for _ in range(2):
            optimizer_step(found)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as waits:
                optimizer_step(found)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1, [str(one.message) for one in waits]


def test_frozen_weights_leave_the_gpu_for_the_vae_and_come_back_to_the_bit() -> None:
    frozen, trained = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
    network = nn.Sequential(frozen, trained).to("cuda")
    before, place = frozen.weight.clone(), trained.weight.data_ptr()
    with vae_visits._aside(network, torch.device("cuda")):
        assert frozen.weight.device.type == "cpu" and trained.weight.data_ptr() == place
    assert frozen.weight.is_cuda and torch.equal(frozen.weight, before)


def test_blocks_that_wait_have_arrived_when_they_work() -> None:
    """Large ones, so that a copy takes longer than it takes to begin the work."""
    blocks = nn.ModuleList(nn.Linear(4096, 4096).requires_grad_(False) for _ in range(6)).to("cuda")
    given = torch.randn(64, 4096, device="cuda", requires_grad=True)

    def passed() -> list[torch.Tensor]:
        made = given
        for block in blocks:
            made = checkpoint(block, made, use_reentrant=False)
        return [made.detach(), *torch.autograd.grad(made.square().sum(), given)]

    expected = passed()
    aside = BlocksAside(list(blocks), torch.device("cuda"))
    aside.send(len(blocks))
    for _ in range(10):
        assert all(map(torch.equal, passed(), expected))
    aside.end()
    assert all(one.device.type == "cpu" for one in blocks.parameters())


def test_a_run_with_everything_aside_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_components()
    everything, blocks = parts.network.checkpoint_parts(parts.unet), parts.network.blocks(parts.unet)
    plain = trained(gradient_checkpointing=True)
    monkeypatch.setattr(Plan, "savings", Savings(everything, encoders_aside=True, blocks_aside=len(blocks)))
    for key, tensor in trained().lora.items():
        torch.testing.assert_close(tensor, plain.lora[key], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16"}, {"precision": "fp16"}, *({"base_storage": storage} for storage in STORAGES)],
)
def test_it_learns_in_every_precision(settings: dict[str, Any]) -> None:
    found = trained(**settings, steps=6)
    assert found.losses[-1] == found.losses[-1] and max(found.losses) < 10

"""What only a GPU can show; run by `python dev.py bench gpu`, or with `-m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apt_train.families.storage import STORAGES
from apt_train.training import vae_visits
from apt_train.training.plan import plan_run
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


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16"}, {"precision": "fp16"}, *({"base_storage": storage} for storage in STORAGES)],
)
def test_it_learns_in_every_precision(settings: dict[str, Any]) -> None:
    found = trained(**settings, steps=6)
    assert found.losses[-1] == found.losses[-1] and max(found.losses) < 10

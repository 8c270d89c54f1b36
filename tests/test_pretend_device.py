"""Whole runs on a device that is not the CPU, without one: no tensor is left behind, and a step waits for it once.

Not here: what the numbers are; they are the CPU's (`test_train`).
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_train.events import PreviewEvent
from apt_train.families import swapped
from apt_train.text.conditioning import Conditioner
from apt_train.training.train import train
from tests import pretend_device
from tests.pretend_device import Device
from tests.tiny import tiny_components
from tests.training import Recorder, pictures, quick_config, run

pytestmark = [
    pytest.mark.skipif(not pretend_device.AVAILABLE, reason="this torch cannot be given a device written in Python"),
    pytest.mark.usefixtures("one_thread", "no_report"),
]
# Each with what the others lack: every term, masks and accumulation, a second encoder and recomputing.
RUNS: dict[str, dict[str, Any]] = {
    "apt": {"balance_every": 1},
    "dora, word, accumulation": {"kind": "dora", "identifier_mode": "word", "accumulation": 2, "mask_fill": True},
    "sdxl, checkpointing": {"gradient_checkpointing": True, "attn_schedule": "indicator"},
    "tlora, prior preservation": {"method": "tlora", "prior_images": pictures(seed=5)},
    "dco": {"method": "dco"},
    "int8": {"base_storage": "int8"},
    "sdxl, nf4, tlora, checkpointing": {"base_storage": "nf4", "method": "tlora", "gradient_checkpointing": True},
}


@pytest.fixture
def device() -> Iterator[Device]:
    with pretend_device.pretend_device() as found:
        yield found


def trained(device: Device | str, name: str, **more: Any) -> Any:
    settings = {"steps": 2, "watch_drift": False, **RUNS[name], **more}
    given = {key: settings.pop(key) for key in ("prior_images", "on_event", "output_dir", "resume") if key in settings}
    place = device if isinstance(device, str) else device.device
    parts = tiny_components("sdxl" if "sdxl" in name else "sd15")
    return train(parts, pictures(), quick_config(**settings), device=place, **given)


def test_the_device_refuses_a_tensor_of_the_cpu(device: Device) -> None:
    there, here = torch.ones(2, 2).to(device.device), torch.ones(2, 2)
    assert (there @ there).cpu().tolist() == [[2, 2], [2, 2]]
    with pytest.raises(RuntimeError, match="same device"):
        torch.matmul(there, here)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_there_as_on_the_cpu(name: str, device: Device) -> None:
    found, expected = trained(device, name), trained("cpu", name)
    assert found.lora.keys() == expected.lora.keys()
    for key, tensor in expected.lora.items():
        torch.testing.assert_close(found.lora[key], tensor, rtol=1e-3, atol=2e-4)


QUICK = "apt"  # the others take seconds each


@pytest.mark.parametrize(
    "name", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != QUICK)]
)
def test_a_step_waits_for_the_device_once(name: str, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading makes the CPU wait until the GPU has done all that was asked of it; so do copies not left alone."""
    waits: list[list[str]] = []

    class Watch(Recorder):
        def __call__(self, event: Any) -> None:
            if hasattr(event, "loss"):
                waits.append(device.readings + device.waits)
                device.readings, device.waits = [], []

    monkeypatch.setattr(swapped, "LEFT_UNDER_WAY", (pretend_device.NAME,))
    trained(device, name, steps=3, on_event=Watch(), adaptive_augmentation=False)
    assert waits[1] == waits[2] == ["step_values.py: read"]


def test_what_is_kept_on_the_device_grows_with_the_captions_and_not_with_the_batches(device: Device) -> None:
    """A run of a hundred thousand steps draws nearly as many different batches."""
    captions = ["a photo of {subject}", "a {subject} on grass", "a {subject} in snow", "the {subject}"]
    encoders = tiny_components().text_encoders
    conditioner = Conditioner(encoders, None, class_word="toy", name="zwx", device=device.device)
    conditioner.is_aside = True

    def kept(batches: Iterable[Sequence[str]]) -> int:
        for batch in batches:
            conditioner.encode(list(batch), tuned=True)
        gc.collect()
        return sum(type(found) is pretend_device.OnDevice for found in gc.get_objects())

    assert kept([captions]) == kept(itertools.product(captions, repeat=len(captions) - 1))


@pytest.mark.slow
def test_a_run_there_measures_draws_resumes_and_exports(tmp_path: Path, device: Device) -> None:
    recorder = Recorder()
    more = {"watch_drift": True, "snapshot_every": 1, "preview_every": 2, "output_dir": tmp_path / "run"}
    trained(device, "apt", **more, on_event=recorder)
    assert recorder.steps[0].drift is not None and any(isinstance(one, PreviewEvent) for one in recorder.events)
    resumed = trained(device, "apt", **{**more, "preview_every": 0}, steps=3, resume=True)
    assert resumed.steps_done == 3 and (tmp_path / "run" / "toy_subject.safetensors").is_file()
    assert all(tensor.device.type == "cpu" for tensor in resumed.lora.values())


@pytest.mark.slow
def test_a_run_moves_between_devices(tmp_path: Path, device: Device) -> None:
    settings: dict[str, Any] = {"steps": 2, "watch_drift": False, "output_dir": tmp_path / "run"}
    run(**settings)
    assert trained(device, "apt", **settings | {"steps": 3, "balance_every": 0}, resume=True).steps_done == 3
    assert run(**{**settings, "steps": 4}, resume=True).steps_done == 4

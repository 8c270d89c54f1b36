"""The Python functions inside other people's programs: their threads, their torch, their callbacks, their mistakes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn import functional

from apt_train import ImageSet, TrainConfig, load_checkpoint, load_images, train
from apt_train.errors import InputError
from apt_train.events import BusyEvent, Event, StepEvent, TrainResult
from apt_train.training.device import resolve_device
from tests.tiny import tiny_components
from tests.training import pictures, quick_config, run, same_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_runs_in_several_threads_draw_as_if_each_were_alone() -> None:
    """Dropout and the adapter's first weights are drawn by torch's global generator."""
    settings: dict[str, Any] = {"dropout": 0.3, "watch_drift": False}
    alone = [run(seed=seed, **settings) for seed in range(3)]
    before, start = torch.get_rng_state(), threading.Barrier(3)
    together: dict[int, TrainResult] = {}

    def trained(seed: int) -> None:
        start.wait()
        together[seed] = run(seed=seed, **settings)

    threads = [threading.Thread(target=trained, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [same_weights(alone[seed], together[seed]) for seed in range(3)] == [True] * 3
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_may_be_lent_again_by_the_thread_that_has_it() -> None:
    """As for an estimate within a run."""
    parts = tiny_components()
    for _ in range(2):
        with parts.lent(), parts.lent():
            pass


def test_a_model_that_another_thread_trains_is_refused() -> None:
    settings: dict[str, Any] = {"steps": 3, "watch_drift": False}
    parts = tiny_components()
    refused: list[str] = []

    def trained() -> None:
        with pytest.raises(InputError) as refusal:
            run(parts, **settings)
        refused.append(str(refusal.value))

    def meanwhile(event: Event) -> None:
        if isinstance(event, StepEvent):
            (thread := threading.Thread(target=trained)).start()
            thread.join()

    first = run(parts, on_event=meanwhile, **settings)
    assert len(refused) == 3 and all("in use by another training" in sentence for sentence in refused)
    again = run(parts, **settings)  # afterwards the model is free
    assert same_weights(first, run(tiny_components(), **settings)) and same_weights(first, again)


@contextlib.contextmanager
def switched(switch: Callable[[Any], None], to: Any, back: Any) -> Any:
    switch(to)
    try:
        yield
    finally:
        switch(back)


SUMMED = "allow_fp16_accumulation"
SWITCHED: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "another device": lambda: switched(torch.set_default_device, "meta", None),  # as a program on a GPU sets cuda
    "a block of another device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float32 rounded": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "both of torch's interfaces": lambda: switched(
        lambda kind: setattr(torch.backends, "fp32_precision", kind), "tf32", "none"
    ),
    "an attention without gradients": lambda: switched(
        partial(setattr, functional, "scaled_dot_product_attention"),
        torch.no_grad()(functional.scaled_dot_product_attention),
        functional.scaled_dot_product_attention,
    ),
}


def read_and_trained(model: Path, photos: Path) -> TrainResult:
    components, images = load_checkpoint(model), load_images(photos)
    return train(components, images, quick_config(steps=2, preview_every=1), device="cpu")


@pytest.mark.parametrize("name", SWITCHED)
def test_what_a_program_has_switched_in_torch_changes_no_weight(name: str, model: Path, photos: Path) -> None:
    expected, tensors = read_and_trained(model, photos), [torch.rand(64, 64, 4, dtype=torch.float32)]
    with SWITCHED[name]():
        before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0).device
        assert same_weights(read_and_trained(model, photos), expected)
        given = ImageSet.from_tensors(tensors)
        assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0).device) == before
    assert given.digest == ImageSet.from_tensors(tensors).digest


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, SUMMED), reason="this torch has no such switch")
def test_a_host_that_sums_products_in_float16_does_so_again_afterwards() -> None:
    """As ComfyUI with --fast, where a scaled gradient does not fit."""
    products, seen = torch.backends.cuda.matmul, list[bool]()
    with switched(lambda on: setattr(products, SUMMED, on), True, False):
        run(steps=1, watch_drift=False, on_event=lambda event: seen.append(getattr(products, SUMMED)))
        assert getattr(products, SUMMED)
    assert not any(seen)


def test_a_callback_may_train_something_else() -> None:
    """Also while the drift is measured, which takes no gradient."""
    inner, trained = tiny_components(seed=1), list[str]()

    def on_event(event: Event) -> None:
        kind = event.what if isinstance(event, BusyEvent) else type(event).__name__
        if kind not in trained:
            trained.append(kind)
            train(inner, pictures(seed=1), quick_config(steps=1, watch_drift=False), device="cpu")

    settings: dict[str, Any] = {"steps": 2, "snapshot_every": 1, "preview_every": 1}
    assert same_weights(run(**settings, on_event=on_event), run(**settings))
    assert {"drift", "previews", "StepEvent", "PlanEvent"} <= set(trained)


MISTAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a file for the model": ({"components": "m.safetensors"}, "components is of the type str: give what load_ch"),
    "a network for the model": ({"components": torch.nn.Linear(1, 1)}, "components is of the type Linear"),
    "a folder for the pictures": ({"images": "photos"}, "images is of the type str: give what load_images returns"),
    "tensors for the pictures": ({"images": [torch.rand(64, 64, 3)]}, "images is of the type list"),
    "a folder for the prior images": ({"prior_images": "photos"}, "prior_images is of the type str"),
    "an empty list for the prior images": ({"prior_images": []}, "prior_images is of the type list"),
    "a dictionary for the settings": ({"config": {"class_word": "toy"}}, "config is of the type dict: give a TrainCo"),
    "the settings' class": ({"config": TrainConfig}, "config is of the type type"),
    "a number for the folder": ({"output_dir": 5}, "The output folder is of the type int: give a path"),
    "several folders": ({"output_dir": ["a"]}, "The output folder is of the type list"),
    "no device": ({"device": ""}, "cannot be used here"),
    "a fraction for the device": ({"device": 0.5}, "The device 0.5 cannot be used here"),
    "a record of objects": ({"record": {"model": Path("m")}}, "record cannot be written as JSON"),
    "a record that is a list": ({"record": ["mine"]}, "record cannot be written as JSON"),
    "a record in the run's own place": ({"record": {"config": 1}}, "record has an entry config, which every run"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_an_argument_of_another_kind_is_refused_before_anything_is_made(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, words = MISTAKEN[case]
    right = {"components": tiny_components(), "images": pictures(), "config": quick_config(steps=1), "device": "cpu"}
    with pytest.raises(InputError, match=words):
        train(**cast("dict[str, Any]", {**right, "output_dir": "out", **given}))
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_memory_left_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may hold all of it; then not even torch's own first part fits."""

    def full(*_size: int, **_more: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InputError, match="The device cuda has no memory left"):
        resolve_device("cuda")


def test_a_path_in_bytes_or_of_another_class_is_a_path(photos: Path) -> None:
    class Entry:
        def __fspath__(self) -> str:
            return str(photos)

    found = load_images(photos).digest
    assert load_images(cast("Any", bytes(photos))).digest == load_images(cast("Any", Entry())).digest == found


@pytest.mark.parametrize("dtype", ["bf16", torch.int8, torch.float8_e4m3fn])
def test_a_model_is_loaded_in_a_dtype_that_can_be_trained(dtype: Any, model: Path) -> None:
    with pytest.raises(InputError, match="dtype is .*give torch.float32, torch.bfloat16 or torch.float16"):
        load_checkpoint(model, dtype=dtype)


def test_a_model_that_is_only_on_the_hub_is_told_that_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models/sd does not exist: check the path, as nothing is downloaded"):
        load_checkpoint("models/sd")


def test_a_home_directory_in_the_place_of_a_vae_is_looked_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(InputError, match="The VAE /nowhere/vae.safetensors does not exist"):
        load_checkpoint(model, vae="~/vae.safetensors")


def test_a_result_is_printed_shortly_and_compared_as_itself() -> None:
    result = run(steps=1)
    assert len(repr(result)) < 300 and "steps_done=1" in repr(result)
    assert result in {result} and result != run(steps=1)

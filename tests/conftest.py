"""Rules for every test: no network, and hypothesis examples that are the same on every machine."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from PIL import Image

settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """What is imported stays: garbage collections, else a tenth of all time, need not look through it again.

    They come more rarely, too: a model's many small parts would bring on hundreds of them in every run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture
def reachable() -> set[str]:
    """The addresses that a test may connect to: none. `tests/host` has its own answer."""
    return set()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, reachable: set[str]) -> None:
    """A connection or a name look-up fails the test, whoever asks for it."""

    def guarded(real: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any, **named: Any) -> Any:
            if target(*arguments) not in reachable:
                raise AssertionError(f"a test asked for the network: {arguments}")
            return real(*arguments, **named)

        return ask

    for name in ("connect", "connect_ex"):
        of_socket = guarded(getattr(socket.socket, name), lambda _socket, address: address[0])
        monkeypatch.setattr(socket.socket, name, of_socket)
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))


@pytest.fixture(scope="session", autouse=True)
def quick_files() -> Iterator[None]:
    """Files do not wait for the disk, as no test cuts the power, and pictures are packed in a third of the time.

    The handle of a file is still looked at, and the pixels are the same.
    """
    save = Image.Image.save

    def packed_less(image: Image.Image, file: Any, format: str | None = None, **options: Any) -> None:
        save(image, file, format, **{"compress_level": 1, **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        patch.setattr(Image.Image, "save", packed_less)
        yield


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files in use can be neither moved nor removed. Whoever tries fails the test, even if it gets over the refusal."""
    from tests.pretend_windows import refuse_files_in_use

    refused = refuse_files_in_use(monkeypatch)
    yield
    assert refused == []


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, and much slower when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def blank_figures() -> Iterator[None]:
    """Reports come without their curves, drawing which is most of a short run's time.

    A test file that looks at them has a fixture of this name of its own, which does nothing.
    """
    from tests.blank_figures import leave_blank

    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch.setattr)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5-shaped model as a diffusers folder; only read."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from tests.tiny import tiny_components

    folder = tmp_path_factory.mktemp("model")
    parts = tiny_components()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    encoder = parts.text_encoders[0]
    given: dict[str, Any] = dict(  # diffusers' annotations allow none of the parts that may be left out
        vae=parts.vae,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        unet=parts.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
    )
    StableDiffusionPipeline(**given, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, one with a caption."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draws = torch.Generator().manual_seed(0)
    for i in range(3):
        pixels = torch.randint(0, 256, (70, 80, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    (folder / "1.txt").write_text("a photo of {subject} on grass")
    return folder


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without drawing one, which is most of a short run's time."""
    monkeypatch.setattr("apt_train.training.finish.write_report", lambda folder: folder / "report.md")

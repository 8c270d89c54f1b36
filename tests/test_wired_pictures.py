"""Pictures that come by wire from a host: taken as they are, and without a second copy of them all.

A camera's picture of 24 million pixels takes 290 MB as the host keeps it.

Not here: what is refused (`test_dataset`), the nodes on a real host (`tests/host/test_image_set.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image
from torch import Tensor

from apt_train.data.dataset import ImageSet, load_images
from apt_train.training.live_bytes import LiveBytes

from .node_modules import node_module
from .test_watch import HOST

MODELS = tuple(  # what the nodes import of the host beside `HOST`, to read its models
    f"comfy.{name}"
    for name in ("lora", "lora_convert", "model_base", "model_patcher", "model_sampling", "quant_ops", "samplers", "sd",
                 "supported_models", "ldm.modules.diffusionmodules.openaimodel")
)  # fmt: skip
HEIGHT, WIDTH = 60, 80
OPTIONS = SimpleNamespace(background="white", alpha_masks=False, mask_counts="white")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`nodes/training.py`, beside stand-ins for the host's own modules."""
    for name in (*HOST, *MODELS):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    with node_module("training") as module:
        yield module


def wired(count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures and masks as a node's output has them."""
    seeded = torch.Generator().manual_seed(count)
    with torch.inference_mode():
        pictures = [torch.rand(1, HEIGHT, WIDTH, 3, generator=seeded) for _ in range(count)]
        return pictures, [torch.rand(1, HEIGHT, WIDTH, generator=seeded) for _ in range(count)]


def peak(training: Any, count: int, counts: str) -> float:
    """Bytes per pixel of a picture that are alive at most, beside the wires themselves."""
    pictures, masks = wired(count)
    with LiveBytes([]) as seen:
        training.image_set(pictures, None, masks, SimpleNamespace(**{**vars(OPTIONS), "mask_counts": counts}))
    return seen.peak / (HEIGHT * WIDTH) - count * 16  # the wires count, as torch makes views of them


@pytest.mark.parametrize("counts", ["white", "black"])
def test_a_further_picture_takes_what_the_trainer_keeps_of_it(training: Any, counts: str) -> None:
    """3 bytes a pixel of the picture and 4 of the mask; one that is turned round is made beforehand."""
    further = 3 + 4 + (4 if counts == "black" else 0)
    assert peak(training, 9, counts) - peak(training, 5, counts) <= 4 * further + 0.1


def test_pictures_made_in_inference_mode_can_be_trained_on(training: Any) -> None:
    pictures, masks = wired(2)
    for counts in ("white", "black"):
        found = training.image_set(pictures, None, masks, SimpleNamespace(**{**vars(OPTIONS), "mask_counts": counts}))
        for image in found.images:
            assert not image.pixels.is_inference() and not image.mask.is_inference()
    assert bool((pictures[0] <= 1).all()) and found.images[0].mask.equal(1 - masks[0])


def test_pictures_without_masks_share_a_white_one_of_their_size(tmp_path: Path) -> None:
    for name, size in (("a", (30, 20)), ("b", (30, 20)), ("c", (20, 30))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    images = load_images(tmp_path)
    _, _, (first, second, third) = images.to_tensors()
    assert first is second and first.shape == (1, 20, 30) and third.shape == (1, 30, 20) and bool((third == 1).all())
    assert ImageSet.from_tensors(*images.to_tensors()).digest == images.digest

"""The host alone: it loads the tiny checkpoints, draws with them, and what is told of it elsewhere is so."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from .checkpoints import KINDS
from .server import Host
from .workflows import Graph, checkpoint, text_to_image


def picture(host: Host, kind: str, prompt: str = "a photo of a dog", seed: int = 0) -> Image.Image:
    g = Graph()
    text_to_image(g, *checkpoint(g, f"{kind}.safetensors"), prompt, seed)
    (entry,) = host.run(g.prompt).images
    return host.image(entry)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over the pixels, of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("kind", [*KINDS, "sd15_kl"])
def test_a_tiny_checkpoint_makes_pictures_that_hear_prompt_and_seed(host: Host, kind: str) -> None:
    first = picture(host, kind)
    assert first.size == (64, 64)
    assert np.mean((np.asarray(first) == 0) | (np.asarray(first) == 255)) < 0.2, "mostly black or white"
    assert np.asarray(first, dtype=float).std() > 10, "flat"
    assert difference(first, picture(host, kind, seed=1)) > 3
    assert difference(first, picture(host, kind, prompt="a red car in the snow")) > 3

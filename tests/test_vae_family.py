"""Whose latents a wired VAE makes, by all that the host leaves to tell it; and silence where nothing does.

Not here: that the host's own loaders leave it (`tests/host/test_components.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from .node_modules import node_module

SD15, SDXL = 0.18215, 0.13025
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def check() -> Iterator[Any]:
    with node_module("host.vae_family") as module:
        yield lambda scale, vae: module.require_vae_of(model_of(scale), vae)


def model_of(scale: float) -> Any:
    return SimpleNamespace(model=SimpleNamespace(latent_format=SimpleNamespace(scale_factor=scale)))


def vae_of(path: object = None, scale: float | None = None) -> Any:
    """As the host leaves it: the tiny autoencoder's own scale, and how the loader would load it again."""
    stage = SimpleNamespace() if scale is None else SimpleNamespace(vae_scale=torch.tensor(scale))
    made_by = None if path is None else (print, (path, None))
    return SimpleNamespace(first_stage_model=stage, patcher=SimpleNamespace(cached_patcher_init=made_by))


def checkpoint(folder: Path, context: int, *, lora: bool = False) -> str:
    tensors = {
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, context),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
    }
    if lora:
        tensors["lora_unet_stray.lora_up.weight"] = torch.zeros(1)
    path = folder / f"{context}.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(("channels", "sides", "fits"), [(4, 2, True), (16, 2, False), (4, 3, False)])
def test_latents_of_another_shape_or_of_a_video_are_refused(channels: int, sides: int, fits: bool) -> None:
    model = SimpleNamespace(model=SimpleNamespace(latent_format=SimpleNamespace(latent_channels=4)))
    vae = SimpleNamespace(latent_channels=channels, latent_dim=sides)
    said = rf"latents of {channels} channels, the model reads 4: wire the VAE"
    with node_module("host.vae_family") as module, nullcontext() if fits else pytest.raises(ValueError, match=said):
        module.require_channels_of(model, vae)


@pytest.mark.parametrize(("model", "vae", "named"), [(SD15, SDXL, "SDXL"), (SDXL, SD15, "SD1.5")])
def test_a_tiny_autoencoder_tells_by_its_scale(check: Any, model: float, vae: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"The VAE is one of {named}, but the MODEL"):
        check(model, vae_of(scale=vae))
    check(vae, vae_of(scale=vae))


# SD2.x has the VAE of SD1.5, the refiner that of SDXL.
@pytest.mark.parametrize(("context", "own", "other"), [
    (768, SD15, SDXL), (1024, SD15, SDXL), (2048, SDXL, SD15), (1280, SDXL, SD15),
])  # fmt: skip
def test_a_checkpoint_tells_by_its_unet(check: Any, tmp_path: Path, context: int, own: float, other: float) -> None:
    vae = vae_of(checkpoint(tmp_path, context, lora=True))
    check(own, vae)
    with pytest.raises(ValueError, match=rf"\(from {context}.safetensors\).*wire the VAE of the same checkpoint"):
        check(other, vae)


def test_a_file_of_a_vae_alone_tells_by_what_it_says_of_itself(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(
        {"decoder.conv_in.weight": torch.zeros(1)}, path, {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
    )
    check(SDXL, vae_of(str(path)))
    with pytest.raises(ValueError, match="SDXL"):
        check(SD15, vae_of(str(path)))


def test_where_nothing_tells_nothing_is_said(check: Any, tmp_path: Path) -> None:
    """A VAE alone, another family's checkpoint, a damaged or a missing file, a loader that left no trace."""
    bare, damaged, pickled = (tmp_path / name for name in ("bare.safetensors", "damaged.safetensors", "old.ckpt"))
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, bare)
    damaged.write_bytes(b"\xff" * 40)
    pickled.write_bytes(b"PK\x03\x04")
    paths = [str(bare), str(damaged), str(pickled), str(tmp_path / "gone.safetensors"), checkpoint(tmp_path, 4096)]
    vaes = [*map(vae_of, paths), vae_of(), vae_of(path=3), vae_of(scale=1.0), vae_of(scale=1.5305)]
    for vae in [*vaes, SimpleNamespace(first_stage_model=SimpleNamespace())]:
        for model in (SD15, SDXL):
            check(model, vae)


def test_a_model_of_another_scale_is_left_alone(check: Any) -> None:
    check(0.5, vae_of(scale=SDXL))

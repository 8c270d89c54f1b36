"""LoRA files as other programs write them, made from one of ours; none of the pack's own naming is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.tiny_checkpoint import unet_to_ldm

Layers = dict[str, tuple[Tensor, Tensor]]  # by path: down, up


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def random_layers(module: nn.Module, paths: list[str], rank: int = 4, size: float = 0.3) -> Layers:
    """A LoRA of random numbers on these linear and convolution layers."""
    draws, found = torch.Generator().manual_seed(0), {}
    for path in paths:
        weight = module.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        rows, columns, *kernel = weight.shape
        down = torch.randn(rank, columns, *kernel, generator=draws) * size
        up = torch.randn(rows, rank, *[1] * len(kernel), generator=draws) * size
        found[path] = down, up
    return found


def attention_paths(unet: nn.Module) -> list[str]:
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    return [path for path, layer in unet.named_modules() if path.endswith(ends) and isinstance(layer, nn.Linear)]


def kohya(layers: Layers, alpha: float = 4.0, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    found = {}
    for path, (down, up) in layers.items():
        name = prefix + path.replace(".", "_")
        found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = down, up
        found[f"{name}.alpha"] = torch.tensor(alpha)
    return found


def original(layers: Layers, unet: nn.Module) -> Layers:
    """The same layers under their paths in the original code, found by where the weights lie."""
    names = {tensor.data_ptr(): name.removesuffix(".weight") for name, tensor in unet_to_ldm(unet).items()}
    return {names[weight.data_ptr()]: layers[path] for path, weight in _weights(unet) if path in layers}


def peft(layers: Layers, lead: str = "unet.") -> dict[str, Tensor]:
    """As peft and diffusers save it; without alpha, which is then the rank."""
    return {
        f"{lead}{path}.{part}.weight": tensor
        for path, pair in layers.items()
        for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def processors(layers: Layers) -> dict[str, Tensor]:
    """As diffusers saved attention before 0.22."""
    found = {}
    for path, (down, up) in layers.items():
        attention, _, layer = path.removesuffix(".0").rpartition(".")
        for part, tensor in (("down", down), ("up", up)):
            found[f"unet.{attention}.processor.{layer}_lora.{part}.weight"] = tensor
    return found


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in module.state_dict().items():
        if name.endswith(".weight"):
            yield name.removesuffix(".weight"), tensor


def scaled(lora: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """So much stronger, by its alpha."""
    return {key: tensor * factor if key.endswith(".alpha") else tensor for key, tensor in lora.items()}

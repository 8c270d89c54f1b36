"""The vocabulary of LoRA files: how a family's files describe the model and name its layers, with generic defaults.

In: the defaults for a family that defines none. Not in: any family's own names (`sd/layer_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_DOTTED = (
    "", "unet.", "transformer.", "diffusion_model.", "base_model.model.", "unet.base_model.model.",
    "base_model.model.unet.",
)  # fmt: skip
Called = Callable[[str], tuple[str, ...]]  # a layer's path -> its names after the lead


def layer_paths(module: nn.Module) -> Iterator[str]:
    """Paths of all layers with their own weight or bias."""
    for path, layer in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        if path and any(True for _ in layer.parameters(recurse=False)):
            yield path


def plain_names(network: nn.Module) -> dict[str, str]:
    """Name in a file -> layer path: the names that kohya, LyCORIS, peft and diffusers derive from any path."""
    names: dict[str, str] = {}
    for path in layer_paths(network):
        flat = path.replace(".", "_")
        for name in (*(f"{lead}{flat}" for lead in _FLAT), *(f"{lead}{path}" for lead in _DOTTED)):
            names.setdefault(name, path)
    return names


def plain_encoder_names(
    encoder: nn.Module, number: int, count: int, key: str, called: Called = lambda path: (path,), *leads: str
) -> dict[str, str]:
    """Likewise for text encoder `number` (from 1) of `count`; `key`: its tensor's name in an embedding file.

    `leads`: what a family's files also put before `called`.
    """
    kohya = [f"lora_te{number}_", *(["lora_te_"] if count == 1 else [])]
    own = "text_encoder" if number == 1 else f"text_encoder_{number}"
    names: dict[str, str] = {}
    for path in layer_paths(encoder):
        for name in called(path):
            names.update({lead + name.replace(".", "_"): path for lead in kohya})
            names.update({lead + name: path for lead in (f"{own}.", f"{own}.base_model.model.", *leads)})
    return names


def config_of(module: nn.Module) -> Mapping[str, Any]:
    """A module's configuration; empty if it has none, as modules of other libraries than diffusers."""
    return getattr(module, "config", {})


@dataclass(frozen=True)
class FileWords:
    """A family's terms, as other programs read and write them.

    `lead`: what precedes a layer's name, with its dots as `_`. ComfyUI expects `lora_transformer_` before the names of
    diffusers' transformers.
    """

    architecture: str = "custom"  # in the model metadata standard (modelspec)
    base_version: str = "custom"  # in kohya's metadata
    implementation: str = "diffusers"  # the code base whose layer names the files use
    # (layer path, module configuration) -> its path in that code base; None: it has none.
    path: Callable[[str, Mapping[str, Any]], str | None] = lambda module, config: module
    # All names by which files may call a layer -> its path: for the network, for a text encoder.
    network_names: Callable[[nn.Module], Mapping[str, str]] = plain_names
    encoder_names: Callable[[nn.Module, int, int, str], Mapping[str, str]] = plain_encoder_names
    # A file's layers -> the kind of model they belong to, in a word; empty: unknown.
    model_of: Callable[[Mapping[str, Mapping[str, Tensor]]], str] = lambda layers: ""
    lead: str = "lora_unet_"

"""What the files of a model's LoRAs say of it and call its layers: a family's words, with plain ones to go by.

In: what a family that says nothing gets. Not in: any family's own names (`sd/layer_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

_DOTTED = ("", "unet.", "base_model.model.", "unet.base_model.model.", "base_model.model.unet.")


def layer_paths(module: nn.Module) -> Iterator[str]:
    """Paths of what has a weight or a bias of its own."""
    for path, layer in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        if path and any(True for _ in layer.parameters(recurse=False)):
            yield path


def plain_names(network: nn.Module) -> dict[str, str]:
    """Name in a file -> path of the layer: names that kohya, LyCORIS, peft and diffusers make of any path."""
    names: dict[str, str] = {}
    for path in layer_paths(network):
        flat = path.replace(".", "_")
        for name in (f"lora_unet_{flat}", f"lycoris_{flat}", *(f"{lead}{path}" for lead in _DOTTED)):
            names.setdefault(name, path)
    return names


def plain_encoder_names(encoder: nn.Module, number: int, count: int, key: str) -> dict[str, str]:
    """The same for text encoder `number` (from 1) of `count`; `key`: what its rows go by in an embedding file."""
    kohya = [f"lora_te{number}_", *(["lora_te_"] if count == 1 else [])]
    own = "text_encoder" if number == 1 else f"text_encoder_{number}"
    names: dict[str, str] = {}
    for path in layer_paths(encoder):
        flat = path.replace(".", "_")
        names.update({lead + flat: path for lead in kohya})
        names.update({lead + path: path for lead in (f"{own}.", f"{own}.base_model.model.")})
    return names


@dataclass(frozen=True)
class FileWords:
    """In the words that other programs read and write."""

    architecture: str = "custom"  # of the model metadata standard
    base_version: str = "custom"  # kohya's
    implementation: str = "diffusers"  # the code whose names its layers go by
    # A layer's path and the module's configuration -> its path in that code; None: it has none.
    path: Callable[[str, Mapping[str, Any]], str | None] = lambda module, config: module
    # Every name by which a file may call a layer -> its path: of the network, of a text encoder.
    network_names: Callable[[nn.Module], Mapping[str, str]] = plain_names
    encoder_names: Callable[[nn.Module, int, int, str], Mapping[str, str]] = plain_encoder_names
    # The kind of model that a file's layers are of, in a word; empty: not known.
    model_of: Callable[[Mapping[str, Mapping[str, Tensor]]], str] = lambda layers: ""

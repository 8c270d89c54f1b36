"""The files that leave a run: the LoRA and the learned embedding.

In: the adapter's weights under kohya's names, which every program loads; checking each name against the UNet; writing.
Not in: the metadata (`metadata`), a family's names for its layers (`Family.file_words`), the file format
(`tensor_writer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..adapter import ADAPTER
from ..adapter_kinds import KINDS, Kind, kind_of_file
from ..disk.tensor_writer import data_digest, write_tensors
from ..errors import InputError
from ..families.components import Family
from ..families.file_words import config_of
from .metadata import fit_metadata

_NO_RANK = 1 << 16  # of layers that show no rank: so high that no matrix is split into factors


class LoadedAdapter(NamedTuple):
    """An adapter read from a file: its weights by module path, its rank and alpha, its kind by name."""

    state: dict[str, Tensor]
    rank: int
    alpha: float
    kind: str


def kohya_name(module: str, family: Family, unet_config: Mapping[str, Any]) -> str | None:
    """The name of a layer in a LoRA file; None: the family has no name for it."""
    path = family.file_words.path(module, unet_config)
    return None if path is None else family.file_words.lead + path.replace(".", "_")


def lora_to_kohya(
    state: Mapping[str, Tensor], alpha: float, family: Family, unet_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The adapter's weights in the form a LoRA file stores.

    Args:
        state: for a LoRA `MODULE.lora_A.weight` (rank, in) and `MODULE.lora_B.weight` (out, rank), where MODULE is a
            path in the UNet; for another kind its own `parts`.
        alpha: the scale numerator used in training; readers multiply the update by alpha / rank.
        unet_config: the UNet's configuration, for SDXL's block names.

    Returns:
        For a LoRA `NAME.lora_down.weight`, `NAME.lora_up.weight` and the scalar `NAME.alpha` per module, float32 on
        the CPU.
    """
    lora: dict[str, Tensor] = {}
    for key, tensor in sorted(state.items()):
        module, part = _split(key)
        name = kohya_name(module, family, unet_config)
        if name is None:
            raise RuntimeError(f"{key} has no name in a LoRA file: only attention and feed-forward layers do.")
        lora[f"{name}.{part}"] = tensor.detach().to("cpu", torch.float32).contiguous()
        lora[name + ".alpha"] = torch.tensor(float(alpha))
    return lora


def adapter_from_kohya(lora: Mapping[str, Tensor], unet: nn.Module, family: Family) -> LoadedAdapter:
    """The inverse of `lora_to_kohya`.

    Raises:
        InputError: the LoRA does not fit the UNet, or its layers differ in rank or alpha.
    """
    try:
        check_lora_keys(lora, unet, family)
    except RuntimeError as error:
        raise InputError(f"The LoRA does not fit this model: {error}") from error
    name = kind_of_file(lora)
    kind = KINDS[name]
    layers = _layers(unet, family)
    state = {
        f"{layers[key.removesuffix(f'.{theirs}')][0]}.{ours}": tensor
        for ours, theirs in kind.parts.items()
        for key, tensor in lora.items()
        if key.endswith(f".{theirs}")
    }
    ranks = set(_ranks(lora, kind).values()) or {_NO_RANK}
    alphas = {float(tensor) for key, tensor in lora.items() if key.endswith(".alpha")}
    if len(ranks) != 1 or len(alphas) != 1:
        raise InputError("The LoRA's layers differ in rank or alpha: use one that APT Train wrote.")
    return LoadedAdapter(state, ranks.pop(), alphas.pop(), name)


def check_lora_keys(lora: Mapping[str, Tensor], unet: nn.Module, family: Family) -> None:
    """Match every key of a LoRA file against the UNet's layers, by name and by shape.

    The UNet may have the adapter attached or not.

    Raises:
        RuntimeError: names the first key that is missing, that no layer has, or whose shape does not fit.
    """
    sizes = {name: (one.out_features, one.in_features) for name, (_, one) in _layers(unet, family).items()}
    names = sorted({key.split(".")[0] for key in lora})
    kind = KINDS[kind_of_file(lora)]
    for name in names:
        if name not in sizes:
            raise RuntimeError(f"{name} is in the LoRA, but no layer of the model has that name.")
    ranks = _ranks(lora, kind)
    rank = max(ranks.values(), default=_NO_RANK)
    wanted = {name: {**kind.shapes(ranks.get(name, rank), *sizes[name]), "alpha": ()} for name in names}
    expected = {f"{name}.{part}": shape for name, shapes in wanted.items() for part, shape in shapes.items()}
    for key in sorted(set(lora) ^ set(expected)):
        raise RuntimeError(f"{key} is {'unknown in' if key in lora else 'missing from'} the LoRA.")
    for key, shape in expected.items():
        found = tuple(lora[key].shape)
        if found != shape:
            raise RuntimeError(f"{key} has shape {found}, but the model's layer needs {shape}.")


def save_lora(path: str | Path, lora: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file: temporary name, flush, read-back, rename (see `tensor_writer.write_tensors`).

    Metadata too long for readers (a header above 1 MiB) is shortened, and the hash of the weights is added. Equal
    weights and metadata give byte-for-byte equal files. The weights are stored as given, which is float32 in training:
    float16 would round the small ones of a short run.

    Raises:
        InputError: a weight is not finite, the disk or folder takes no file, or the file reads back different.
    """
    _require_finite(lora, Path(path).name)
    digest = data_digest(lora)
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    write_tensors(path, lora, fit_metadata({**metadata, **hashes}, lora))


def save_embedding(
    path: str | Path, embeddings: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the learned identifier for use in prompts: `embedding:FILE` in ComfyUI.

    Args:
        embeddings: the rows per text encoder, (n, width) float32: `clip_l` and, for SDXL, `clip_g`.

    Raises:
        InputError: as in `save_lora`.
    """
    assert embeddings and all(rows.ndim == 2 for rows in embeddings.values())
    _require_finite(embeddings, Path(path).name)
    stored = {key: rows.detach().to("cpu", torch.float32) for key, rows in embeddings.items()}
    write_tensors(path, stored, metadata)


def _split(key: str) -> tuple[str, str]:
    """The layer's path, and the weight's name in a file."""
    for kind in KINDS.values():
        for ours, theirs in kind.parts.items():
            if key.endswith(f".{ours}"):
                return key.removesuffix(f".{ours}"), theirs
    raise RuntimeError(f"{key} is no weight of an adapter: no kind has one of that name.")


def _layers(unet: nn.Module, family: Family) -> dict[str, tuple[str, nn.Linear]]:
    """The UNet's own linear layers by their name in a LoRA file, each with its path without the adapter."""
    found: dict[str, tuple[str, nn.Linear]] = {}
    for inner, module in cast("Iterator[tuple[str, nn.Module]]", unet.named_modules()):
        path = inner.removesuffix(".base_layer")
        if isinstance(module, nn.Linear) and ADAPTER not in inner.split("."):
            name = kohya_name(path, family, config_of(unet))
            if name is not None:
                assert name not in found, name
                found[name] = path, module
    return found


def _ranks(lora: Mapping[str, Tensor], kind: Kind) -> dict[str, int]:
    """The rank of each layer that shows it, by name; one whose matrices are not split into factors does not."""
    part, dimension = f".{kind.rank_of[0]}", kind.rank_of[1]
    sized = {key.removesuffix(part): tensor for key, tensor in lora.items() if key.endswith(part)}
    return {name: tensor.shape[dimension] for name, tensor in sized.items() if tensor.ndim > dimension}


def _require_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} was not written, because {key} holds values that are not finite numbers: "
                "go on from the last snapshot with a lower learning rate."
            )

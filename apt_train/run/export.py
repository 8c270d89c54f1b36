"""The files that leave a run: the LoRA and the learned embedding.

In: the adapter's weights under kohya's names, which every program loads, and back; writing.
Not in: the metadata (`metadata`), a family's names for its layers (`Family.file_words`), the file format
(`tensor_writer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter_kinds import KINDS
from ..disk.tensor_writer import data_digest, write_tensors
from ..errors import InputError
from ..families.components import Family
from .metadata import fit_metadata


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
    names = _file_keys(state, family, unet_config)
    lora = {name: state[key].detach().to("cpu", torch.float32).contiguous() for key, name in names.items()}
    return lora | {f"{name.partition('.')[0]}.alpha": torch.tensor(float(alpha)) for name in names.values()}


def lora_from_kohya(
    lora: Mapping[str, Tensor], like: Mapping[str, Tensor], alpha: float, family: Family, unet_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The inverse of `lora_to_kohya`.

    Args:
        like: the state of an adapter with the same settings, for names and shapes.

    Raises:
        InputError: names the first key that no layer has, that is missing, or whose shape or alpha does not fit.
    """
    expected = lora_to_kohya(like, alpha, family, unet_config)
    for key in sorted(lora.keys() - expected.keys()):
        raise InputError(f"The LoRA does not fit this model: no adapted layer has a {key}.")
    for key, tensor in expected.items():
        if key not in lora:
            raise InputError(f"The LoRA does not fit this model: {key} is missing.")
        found = lora[key]
        if found.shape != tensor.shape:
            raise InputError(
                f"The LoRA does not fit this model: {key} has shape {tuple(found.shape)}, not {tuple(tensor.shape)}."
            )
        if key.endswith(".alpha") and found != tensor:
            raise InputError(f"The LoRA does not fit this model: {key} is {found:g}, not {tensor:g}.")
    return {key: lora[name] for key, name in _file_keys(like, family, unet_config).items()}


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


def _file_keys(state: Iterable[str], family: Family, unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Each weight's name in a LoRA file, in the order of the state's names."""
    names: dict[str, str] = {}
    for key in sorted(state):
        module, part = _split(key)
        name = kohya_name(module, family, unet_config)
        if name is None:
            raise RuntimeError(f"{key} has no name in a LoRA file: the model's family names no such layer.")
        names[key] = f"{name}.{part}"
    assert len(set(names.values())) == len(names), "two layers share a name"
    return names


def _split(key: str) -> tuple[str, str]:
    """The layer's path, and the weight's name in a file."""
    for kind in KINDS.values():
        for ours, theirs in kind.parts.items():
            if key.endswith(f".{ours}"):
                return key.removesuffix(f".{ours}"), theirs
    raise RuntimeError(f"{key} is no weight of an adapter: no kind has one of that name.")


def _require_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} was not written, because {key} holds values that are not finite numbers: "
                "go on from the last snapshot with a lower learning rate."
            )

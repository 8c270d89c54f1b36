"""The host's weights as plain tensors: patches (LoRAs) baked in, quantised ones back in floats; and their digest.

In: what `ModelPatcher` keeps. Not in: which model it is (`model`, `text`).
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
import torch
from torch import Tensor

from ...apt_train.errors import InputError

_SCALES = ("weight_scale", "scale_weight", "input_scale", "scale_input", "comfy_quant", "scaled_fp8")


def baked(patcher: Any, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights under `prefix` (cut off the names) on the CPU, as fresh tensors that autograd may touch.

    Loaded or not, in part or whole, the same come out: nothing of the host's is written to. `dtype`: what floating
    ones are cast to; None: their own type, float32 where that has less than 16 bits.
    """
    require_bakeable(patcher)
    found = {}
    for key, parts in patcher.get_key_patches(prefix).items():
        if key.rsplit(".", 1)[-1] not in _SCALES:
            found[key.removeprefix(prefix)] = _baked_one(key, parts, dtype)
    return found


def _baked_one(key: str, parts: list[Any], dtype: torch.dtype | None) -> Tensor:
    (weight, convert), patches = parts[0], parts[1:]
    plain = _plain(key, weight)
    if not plain.is_floating_point():
        return plain.to("cpu", copy=True)
    target = dtype or (plain.dtype if plain.dtype.itemsize >= 2 else torch.float32)
    if not patches:
        return convert(plain.to("cpu", target, copy=True), inplace=True)
    full = convert(plain.to("cpu", torch.float32, copy=True), inplace=True)
    return comfy.lora.calculate_weight(patches, full, key).to(target, copy=True)


def _plain(key: str, weight: Tensor) -> Tensor:
    """A weight as an ordinary tensor."""
    weight = weight.detach()
    if type(weight) is Tensor:
        return weight
    if hasattr(weight, "dequantize"):  # the host's QuantizedTensor
        return weight.dequantize()
    raise InputError(
        f"The weight {key} is kept as a {type(weight).__name__}, which cannot be read: load the model as fp16, "
        "bf16, fp32 or fp8 instead."
    )


def require_bakeable(patcher: Any) -> None:
    """InputError for what changes a model's output and is no weight patch: it would silently be left out."""
    if any(patcher.injections.values()):
        raise InputError(
            "The model carries a LoRA in bypass mode, which cannot be baked into its weights: load that LoRA with "
            "bypass off."
        )
    if patcher.hook_patches:
        raise InputError(
            "The model carries weight hooks (a LoRA with a schedule), which cannot be baked: load the LoRA without "
            "hooks."
        )


class DigestCache:
    """Sha256 of a patcher's weights, each model and set of patches hashed once while it lives."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()

    def of(self, patcher: Any, prefix: str, unread: frozenset[str] = frozenset()) -> str:
        """Hex, of the weights under a prefix but those that nobody reads.

        Equal for equal weights with equal patches, wherever they are loaded. `unread`: weights a file may lack: the
        host leaves them as the memory happened to be.
        """
        known = self._known.setdefault(patcher.model, {})
        key = (prefix, patcher.patches_uuid)
        if key not in known:
            known[key] = _digest(patcher, prefix, unread, known)
        return known[key]

    def of_module(self, module: torch.nn.Module) -> str:
        """Of a module that carries no patches (the VAE)."""
        known = self._known.setdefault(module, {})
        if "" not in known:
            known[""] = _joined({name: _hash(name, tensor) for name, tensor in module.state_dict().items()})
        return known[""]


def _digest(patcher: Any, prefix: str, unread: frozenset[str], known: dict[Any, str]) -> str:
    """Patched weights are hashed as baked; the hashes of the others are kept, for the next set of patches."""
    require_bakeable(patcher)
    parts = {
        key: entry for key, entry in patcher.get_key_patches(prefix).items() if key.removeprefix(prefix) not in unread
    }
    plain = {key: entry for key, entry in parts.items() if len(entry) == 1}
    missing = {key: entry[0][0] for key, entry in plain.items() if ("plain", key) not in known}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
        for key, digest in zip(missing, pool.map(_hash, missing, missing.values()), strict=True):
            known["plain", key] = digest
    hashes = {key: known["plain", key] for key in plain}
    hashes |= {key: _hash(key, _baked_one(key, entry, None)) for key, entry in parts.items() if len(entry) > 1}
    return _joined(hashes)


def _hash(key: str, tensor: Tensor) -> str:
    plain = _plain(key, tensor)
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)};".encode())
    digest.update(memoryview(plain.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _joined(hashes: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}={hashes[name]};" for name in sorted(hashes)).encode()).hexdigest()

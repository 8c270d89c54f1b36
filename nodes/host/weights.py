"""The host's weights as plain tensors: patches (LoRAs) baked in, quantised ones as floats; and their digest.

In: the contents of `ModelPatcher`. Not in: which model it is (`model`, `text`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
import comfy.model_patcher
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...apt_train.errors import InputError
from ..hashing import AtPiece, hashes, joined, tensor_hash
from .progress import stop_if_cancelled

_PLAIN = "load the model as fp16, bf16, fp32 or fp8 instead"


def baked(patcher: Any, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights under `prefix` (removed from the names) on the CPU, as fresh tensors that autograd may use.

    The result does not depend on what is loaded, and nothing of the host's is written to. `dtype`: of floating-point
    weights; None: their own, or float32 if that has less than 16 bits.
    """
    require_bakeable(patcher)
    return {part.key.removeprefix(prefix): _baked_one(part, dtype) for part in _parts(patcher, prefix)}


@dataclass(frozen=True)
class _Part:
    """A weight before its patches, and the function that converts its stored form to numbers."""

    key: str
    weight: Tensor
    convert: Callable[..., Tensor] | None
    patches: list[Any]


def _parts(patcher: Any, prefix: str) -> Iterator[_Part]:
    """Like the patcher's own `get_key_patches`, which fails on the scales of quantised models."""
    for key in patcher.model_state_dict():
        if not key.startswith(prefix) or _belongs_to_a_quantised(patcher.model, key):
            continue
        stop_if_cancelled()
        weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
        if key in patcher.backup:  # patched on the device: take the original weight
            weight = patcher.backup[key].weight
        if key in patcher.hook_backup:
            weight = patcher.hook_backup[key][0]
        yield _Part(key, weight, convert, patcher.patches.get(key, []))


def _belongs_to_a_quantised(model: torch.nn.Module, key: str) -> bool:
    """Whether a key is a quantised layer's scale or label, which its weight already includes."""
    owner, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(model, owner) if owner else model
    if name in ("weight", "bias") or not isinstance(getattr(layer, "weight", None), QuantizedTensor):
        return False
    if name == "pre_quant_scale":
        raise InputError(f"The layer {owner} scales its input before it is quantised, which cannot be baked: {_PLAIN}.")
    return True


def _baked_one(part: _Part, dtype: torch.dtype | None) -> Tensor:
    plain = _plain(part.key, part.weight)
    if not plain.is_floating_point():
        return plain.to("cpu", copy=True)
    target = dtype or (plain.dtype if plain.dtype.itemsize >= 2 else torch.float32)
    full = plain.to("cpu", torch.float32 if part.patches else target, copy=True)
    full = full if part.convert is None else part.convert(full, inplace=True)
    return comfy.lora.calculate_weight(part.patches, full, part.key).to(target) if part.patches else full


def _plain(key: str, weight: Tensor) -> Tensor:
    """A weight as an ordinary tensor."""
    weight = weight.detach()
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    if type(weight) is Tensor:
        return weight
    raise InputError(f"The weight {key} is kept as a {type(weight).__name__}, which cannot be read: {_PLAIN}.")


def require_bakeable(patcher: Any) -> None:
    """InputError for changes to the model that are not weight patches, and would silently be lost."""
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
    replaced = [name for name in patcher.object_patches if name.split(".")[0] == "diffusion_model"]
    if replaced or patcher.weight_wrapper_patches:
        what = ", ".join([*replaced, *patcher.weight_wrapper_patches][:3])
        raise InputError(f"The model has parts replaced or compiled ({what}): remove the node that does it.")


class DigestCache:
    """SHA-256 of a patcher's weights; each model and set of patches is hashed once while it lives."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()

    def of(self, patcher: Any, prefix: str, at_piece: AtPiece, unread: frozenset[str] = frozenset()) -> str:
        """Hex digest of the weights under a prefix, except `unread` ones.

        Equal for equal weights with equal patches, wherever they are loaded. `unread`: weights that a file may lack and
        the host then leaves uninitialised. `at_piece`: called before each weight that is hashed; if it raises, the work
        ends, but finished hashes are kept.
        """
        known = self._known.setdefault(patcher.model, {})
        key = (prefix, patcher.patches_uuid)
        if key not in known:
            known[key] = _digest(patcher, prefix, unread, known, at_piece)
        return known[key]

    def of_module(self, module: torch.nn.Module, at_piece: AtPiece) -> str:
        """The digest of a module without patches (the VAE)."""
        known = self._known.setdefault(module, {})
        if "" not in known:
            plain = {name: _plain(name, tensor) for name, tensor in module.state_dict().items()}
            known[""] = joined(dict(hashes(plain, at_piece, tensor_hash)))
        return known[""]


def _digest(patcher: Any, prefix: str, unread: frozenset[str], known: dict[Any, str], at_piece: AtPiece) -> str:
    """Patched weights are hashed as baked; the other hashes are kept for the next set of patches."""
    require_bakeable(patcher)
    parts = [part for part in _parts(patcher, prefix) if part.key.removeprefix(prefix) not in unread]
    new = {part.key: part for part in parts if not part.patches and ("plain", part.key) not in known}
    for key, digest in hashes(new, at_piece, lambda part: tensor_hash(_plain(part.key, part.weight))):
        known["plain", key] = digest
    patched = [part for part in parts if part.patches]
    found = {part.key: known["plain", part.key] for part in parts if not part.patches}
    for done, part in enumerate(patched):  # one at a time: each is a copy
        at_piece(done, len(patched))
        found[part.key] = tensor_hash(_baked_one(part, None))
    return joined(found)

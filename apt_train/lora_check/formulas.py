"""The change that a LoRA file's tensors make to a layer's weight: one formula per supported kind.

LoRA (arXiv 2106.09685), also on convolutions and with a middle part; DoRA (2402.09353); LoHa (2108.06098), LoKr
(2309.14859); plain differences. In: tensors -> the change at full strength. Not in: names and files (`lora_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # a layer's tensors, by the values of `PARTS`

PARTS: dict[str, str] = {
    **{end: "down" for end in ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight")},
    **{end: "up" for end in ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight")},
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    **{end: "dora" for end in ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight")},
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": "diff",
    "w_norm": "diff",
    "diff_b": "bias",
    "b_norm": "bias",
}
"""The end of a key in a file -> the part it holds."""


def kind_of(parts: Parts) -> str | None:
    """`LoRA`, `DoRA`, `LoHa`, `LoKr` or `difference`; None: the parts form none of them."""
    names = set(parts)
    if {"up", "down"} <= names:
        return "DoRA" if "dora" in names else "LoRA"
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= names:
        return "LoHa"
    if _has_factor(names, "lokr_w1") and _has_factor(names, "lokr_w2"):
        return "LoKr"
    return "difference" if {"diff", "bias"} & names else None


def rank_of(parts: Parts) -> int | None:
    """The layer's rank; None: its kind has none."""
    thin = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((int(parts[name].shape[0]) for name in thin if name in parts), None)


def change(parts: Parts, base: Tensor) -> Tensor:
    """The change to the weight `base` at strength 1, float32 of its shape on its device.

    Every kind is linear in the strength, as hosts apply it: for a DoRA the whole difference to `base` is scaled.
    ValueError or RuntimeError: the tensors do not fit each other or the weight.
    """
    tensors = {name: tensor.to(base.device, torch.float32) for name, tensor in parts.items()}
    if "diff" in tensors:
        return tensors["diff"].reshape(base.shape)
    added = (_product(tensors) * _scale(parts)).reshape(base.shape)
    return _decomposed(base.float(), added, tensors["dora"]) if "dora" in tensors else added


def singular_values(parts: Parts) -> Tensor | None:
    """The singular values of a LoRA's change, descending, from its two thin factors; None for another kind."""
    if kind_of(parts) != "LoRA" or "mid" in parts:
        return None
    up, down = (parts[name].double().flatten(1) for name in ("up", "down"))  # the product may exceed float32
    small = cast("Tensor", torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.T, mode="r").R.T)
    return (cast("Tensor", torch.linalg.svdvals(small)) * abs(_scale(parts))).float()


def _scale(parts: Parts) -> float:
    """alpha / rank; 1 if there is no alpha, or the kind has no rank."""
    rank = rank_of(parts)
    return float(parts["alpha"]) / rank if "alpha" in parts and rank else 1.0


def _product(t: Mapping[str, Tensor]) -> Tensor:
    if "up" in t:
        if "mid" in t:
            return _tucker(t["mid"], t["up"].flatten(1).T, t["down"].flatten(1))
        return t["up"].flatten(1) @ t["down"].flatten(1)
    if "hada_w1_a" in t:
        return _hada(t, 1) * _hada(t, 2)
    return _kronecker(t)


def _hada(t: Mapping[str, Tensor], number: int) -> Tensor:
    first, second = t[f"hada_w{number}_a"], t[f"hada_w{number}_b"]
    return _tucker(t[f"hada_t{number}"], first, second) if f"hada_t{number}" in t else first @ second


def _kronecker(t: Mapping[str, Tensor]) -> Tensor:
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        second = t["lokr_w2"]
    elif "lokr_t2" in t:
        second = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        second = t["lokr_w2_a"] @ t["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def _tucker(core: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Core (i, j, ...), rows (i, p), columns (j, r) -> (p, r, ...)."""
    return torch.einsum("ij...,jr,ip->pr...", core, columns, rows)


def _decomposed(base: Tensor, added: Tensor, magnitude: Tensor) -> Tensor:
    """base + added, its rows or columns rescaled to the given magnitudes, minus base."""
    moved = base + added
    by_row = magnitude.numel() == len(moved) and not (magnitude.ndim > 1 and magnitude.shape[0] == 1)
    axis = 0 if by_row else 1
    norm = cast("Tensor", moved.transpose(0, axis).flatten(1).norm(dim=1)).clamp_min(1e-12)
    factor = (magnitude.flatten() / norm).reshape([-1 if at == axis else 1 for at in range(base.ndim)])
    return moved * factor - base


def _has_factor(names: set[str], factor: str) -> bool:
    return factor in names or {f"{factor}_a", f"{factor}_b"} <= names

"""Kinds of adapter by name. To add one, describe it here and list it in `KINDS`.

A kind says how peft attaches it, what its weights are called in a file, and how they are initialised. The saved file
must behave in ComfyUI exactly as the adapter did in training. torch and peft are imported inside functions, because
the settings import this module only for the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor

    from .config import AdapterConfig


@dataclass(frozen=True)
class Kind:
    """What is trained on each adapted layer. The weight of a linear one is (rows, columns).

    Args:
        title: the kind's name as people write it.
        parts: peft's name of each weight, relative to the layer, mapped to its name in a file. A layer may have only
            some of them.
        drawn: the weights that are initialised at random. The others start as peft or `put_on` leaves them. With
            those starting values the layer's output must equal the base layer's bit for bit.
        config: (the settings, layer names) -> peft's configuration, with `effective_alpha` as its alpha.
        alpha: (rank, the alpha setting) -> the alpha in use. Training and all readers scale the update by alpha / rank.
        by_rank: the submodule whose output has one entry per rank, for T-LoRA; empty: T-LoRA is refused.
        reads_base: whether it reads the base layer's weight, or its shape, which must then be stored in full.
        put_on: called with each peft layer, the adapter's name and the settings, to do what peft does not.
        network: the kind's metadata in kohya's dialect, keys without `ss_network_`.
    """

    title: str
    parts: Mapping[str, str]
    drawn: tuple[str, ...]
    config: Callable[[AdapterConfig, list[str]], PeftConfig]
    alpha: Callable[[int, float], float] = lambda rank, alpha: alpha
    by_rank: str = ""
    reads_base: bool = False
    put_on: Callable[[Any, str, AdapterConfig], None] = lambda layer, name, settings: None
    network: Mapping[str, str] = field(default_factory=lambda: {"module": "networks.lora"})


# ---- LoRA (arXiv 2106.09685), and rsLoRA (arXiv 2312.03732), which differs only in its scale ----------------------


def _lora_config(settings: AdapterConfig, targets: list[str]) -> PeftConfig:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Conv2d, Linear
    from torch import nn

    alpha: Any = settings.effective_alpha  # peft annotates it as an int, and scales by any number
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets)
    # Named explicitly: otherwise peft probes every installed quantisation library, and fails if some other package's
    # torchao is too old for it.
    config._register_custom_module({nn.Linear: Linear, nn.Conv2d: Conv2d})  # pyright: ignore[reportPrivateUsage]
    return config


def _compute_in_input_type(layer: Any, name: str, settings: AdapterConfig) -> None:
    """Multiply in the dtype of the layer's input, on rounded copies of the float32 weights; gradients flow through.

    peft would cast the input to float32 instead. Those products miss a GPU's fast units, and the backward pass keeps
    every float32 copy of an input.
    """
    layer.cast_input_dtype_enabled = False
    for product in (layer.lora_A[name], layer.lora_B[name]):
        product.forward = MethodType(_product, product)  # not a partial, of which compiled blocks each need a version


def _product(module: Any, x: Tensor) -> Tensor:
    from torch.nn.functional import linear

    weight = module.weight.to(x.dtype)
    return linear(x, weight) if weight.dim() == 2 else module._conv_forward(x, weight, None)


def _rank_stabilized(rank: int, alpha: float) -> float:
    return alpha * math.sqrt(rank)


_LORA = Kind(
    title="LoRA",
    parts={"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"},
    drawn=("lora_A.weight",),
    config=_lora_config,
    by_rank="lora_A",
    put_on=_compute_in_input_type,
)


# ---- DoRA (arXiv 2402.09353): direction and magnitude of each column of the weights -------------------------------


def _put_magnitude_on(layer: Any, name: str, settings: AdapterConfig) -> None:
    """Attach one magnitude per column, as in the paper. On this axis alone ComfyUI reproduces what was trained.

    peft's own DoRA has one per row, and ComfyUI divides rows by the norm of the base weights instead of the tuned ones.
    """
    from torch import nn

    _compute_in_input_type(layer, name, settings)
    weight = layer.get_base_layer().weight.detach()
    assert weight.dim() == 2, "a DoRA takes linear layers only"
    layer.lora_magnitude = nn.ParameterDict({name: nn.Parameter(_column_norms(weight.float()))})

    def rescale(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _rescaled(layer, name, inputs[0], output)

    layer.register_forward_hook(rescale)


def _rescaled(layer: Any, name: str, x: Tensor, output: Tensor) -> Tensor:
    """Turn (W + s B A) x + b into (W + s B A)(x + d) + b, where d = (magnitude / norm - 1) x.

    The term in d is added separately because x (1 + tiny) rounds back to x in half precision. As in the paper's
    section 4.3, no gradient flows through the norm.
    """
    import torch
    from torch.nn.functional import linear

    if layer.disable_adapters:
        return output
    weight, scale = layer.get_base_layer().weight, layer.scaling[name]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    with torch.no_grad():
        norm = _column_norms(weight.float() + scale * (up @ down))
    d = (layer.lora_magnitude[name] / norm - 1).to(x.dtype) * x
    return output + linear(d, weight) + scale * linear(linear(d, down.to(d.dtype)), up.to(d.dtype))


def _column_norms(weight: Any) -> Tensor:  # Any: torch leaves `norm` untyped
    """Shape (1, columns), clamped above 0 so that it can be a divisor."""
    return weight.norm(dim=0, keepdim=True).clamp_min(1e-12)


KINDS: dict[str, Kind] = {
    "lora": _LORA,
    "rslora": replace(_LORA, title="rsLoRA", alpha=_rank_stabilized),
    "dora": replace(
        _LORA,
        title="DoRA",
        parts={**_LORA.parts, "lora_magnitude": "dora_scale"},
        by_rank="",
        reads_base=True,
        put_on=_put_magnitude_on,
        network={"module": "lycoris.kohya", "args": '{"algo":"lora","dora_wd":"True"}'},
    ),
}

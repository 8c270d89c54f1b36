"""Stores frozen weights in one byte each and multiplies them in the dtype of their input.

Like diffusers' layerwise casting, but the backward pass recomputes the wide copy; keeping it would save nothing. Each
row also has a power-of-two scale, so that small weights are not lost (ours). Only linear and convolution layers inside
numbered blocks are stored this way. Embeddings, norms, first and last layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # the largest value of this dtype


@contextlib.contextmanager
def stored_in_fp8(module: nn.Module, dtype: torch.dtype) -> Generator[None]:
    """Inside the block the layers hold float8 weights and all else is in `dtype`; afterwards everything is in `dtype`.

    The rounded values are exact in every training dtype, and rounding them again changes nothing.
    """
    layers = list(_layers(module))
    try:
        for layer in layers:
            _store(layer)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.itemsize > 1:
                tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for layer in layers:
            _restore(layer, dtype)


def _layers(module: nn.Module) -> Iterator[Any]:
    """The layers in numbered blocks: nearly all weights of a UNet, and all of an encoder but its embeddings.

    Not those that its library keeps in float32: transformers' T5 casts to the dtype of such a weight, which float8
    does not suit.
    """
    wide = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
        parts = name.split(".")
        if plain and any(part.isdigit() for part in parts) and wide.isdisjoint(parts):
            yield layer


def _store(layer: Any) -> None:
    weight = layer.weight.detach().float()
    scale = _scales(weight)
    layer.register_buffer("fp8_scale", scale, persistent=False)
    layer.weight = nn.Parameter((weight / scale).to(FP8), requires_grad=False)
    layer.forward = partial(_convolved if weight.dim() == 4 else _multiplied, layer)


def _restore(layer: Any, dtype: torch.dtype) -> None:
    if layer.weight.dtype == FP8:
        layer.weight = nn.Parameter(_wide(layer.weight, layer.fp8_scale, dtype), requires_grad=False)
    layer.__dict__.pop("forward", None)
    layer._buffers.pop("fp8_scale", None)
    layer._non_persistent_buffers_set.discard("fp8_scale")


def _scales(weight: Tensor) -> Tensor:
    """Per output row, the smallest power of two that fits it into float8; broadcasts over the weight."""
    largest = weight.abs().flatten(1).amax(dim=1)
    mantissa, exponent = torch.frexp(largest / _LARGEST)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-20)  # half precision cannot hold less
    exponent = torch.where(largest > 0, exponent, torch.zeros_like(exponent))
    return torch.ldexp(torch.ones_like(largest), exponent).view(-1, *[1] * (weight.dim() - 1))


def _wide(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)


def _multiplied(layer: Any, x: Tensor) -> Tensor:
    return cast("Tensor", _Product.apply(x, layer.weight, layer.fp8_scale, layer.bias))


def _convolved(layer: Any, x: Tensor) -> Tensor:
    how = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return cast("Tensor", _Convolution.apply(x, layer.weight, layer.fp8_scale, layer.bias, how))


class _Product(torch.autograd.Function):
    """x W^T + b; saves only the float8 weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _wide(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        return gradient @ _wide(weight, scale, gradient.dtype), None, None, None


class _Convolution(torch.autograd.Function):
    """The same for a convolution; `how`: stride, padding, dilation, groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.size, ctx.how = x.shape, how
        return F.conv2d(x, _wide(weight, scale, x.dtype), bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        wide = _wide(weight, scale, gradient.dtype)
        return grad.conv2d_input(ctx.size, wide, gradient, *ctx.how), None, None, None, None

"""Stores frozen weights in one byte or four bits each and multiplies them in the dtype of their input.

Like diffusers' layerwise casting, but the backward pass recomputes the wide copy; keeping it would save nothing. To add
a storage, list it in `STORAGES`. Only linear and convolution layers inside numbered blocks are stored this way.
Embeddings, norms, first and last layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad


@dataclass(frozen=True)
class Codec:
    """How a weight is kept.

    Args:
        encode: a weight in float32, rows first -> up to three tensors kept of it, its codes first.
        decode: (its shape, a training dtype, the tensors kept) -> the weight in that dtype. A model may be trained on
            twice, so what is encoded and decoded again must come out the same.
    """

    encode: Callable[[Tensor], tuple[Tensor, ...]]
    decode: Callable[..., Tensor]


@contextlib.contextmanager
def stored(module: nn.Module, storage: str, dtype: torch.dtype) -> Generator[None]:
    """Inside the block the layers hold their weights as `storage` says and all else is in `dtype`; afterwards all is.

    `storage`: a name in `STORAGES`, or "full", which is in `dtype` too. Rounding the values again changes nothing.
    """
    layers: list[_Layer] = []
    try:
        for layer in _layers(module) if storage != "full" else ():
            layers.append(_Layer(layer, STORAGES[storage], layer.weight.shape))
            layers[-1].store()
        kept = {id(tensor) for layer in layers for tensor in layer.tensors()}
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and id(tensor) not in kept:
                tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for layer in layers:
            layer.restore(dtype)


def _layers(module: nn.Module) -> Iterator[Any]:
    """The layers in numbered blocks: nearly all weights of a UNet, and all of an encoder but its embeddings.

    Not those that its library keeps in float32: transformers' T5 casts to the dtype of such a weight, which no storage
    suits.
    """
    wide = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        plain = isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        parts = name.split(".")
        if (plain or isinstance(layer, nn.Linear)) and any(part.isdigit() for part in parts) and wide.isdisjoint(parts):
            yield layer


# ---- the storages ----------------------------------------------------------------------------------------------------

# The levels of arXiv 2305.14314, appendix E: equally probable under a normal distribution, with an exact zero.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BLOCK = 64  # weights that share a scale, as there


def _fp8(weight: Tensor) -> tuple[Tensor, ...]:
    scales = _row_scales(weight, 448.0)
    return (weight / scales).to(torch.float8_e4m3fn), scales.bfloat16()


def _int8(weight: Tensor) -> tuple[Tensor, ...]:
    scales = _row_scales(weight, 127.0)
    return (weight / scales).round().to(torch.int8), scales.bfloat16()


def _row_scales(weight: Tensor, most: float) -> Tensor:
    """Per output row, the smallest power of two that brings it to `most`; broadcasts over the weight. Ours.

    A power of two keeps small weights without further rounding: the products are exact in every training dtype.
    """
    largest = weight.abs().flatten(1).amax(dim=1)
    mantissa, exponent = torch.frexp(largest / most)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-20)  # half precision cannot hold less
    return torch.ldexp(torch.ones_like(largest), exponent).view(-1, *[1] * (weight.dim() - 1))


def _by_row(shape: torch.Size, dtype: torch.dtype, codes: Tensor, scales: Tensor) -> Tensor:
    return codes.to(dtype) * scales.to(dtype)


def _nf4(weight: Tensor) -> tuple[Tensor, ...]:
    """Two weights in a byte, a scale per block, and the two levels that each byte stands for.

    Levels and scales have bfloat16's eight bits (ours), so that a block's largest weight is exact in every dtype.
    """
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(min=2**-16).bfloat16()  # half precision cannot hold less
    scaled, codes = blocks / scales, torch.zeros_like(blocks, dtype=torch.uint8)
    for low, high in pairwise(_NF4):
        codes += scaled > (low + high) / 2
    codes, levels = codes.view(-1, 2), torch.tensor(_NF4, device=weight.device, dtype=torch.bfloat16)
    return 16 * codes[:, 0] + codes[:, 1], scales, torch.cartesian_prod(levels, levels)


def _by_block(shape: torch.Size, dtype: torch.dtype, codes: Tensor, scales: Tensor, pairs: Tensor) -> Tensor:
    blocks = F.embedding(codes.int(), pairs.to(dtype)).view(-1, _BLOCK) * scales.to(dtype)
    return blocks.flatten()[: shape.numel()].view(shape)


STORAGES: dict[str, Codec] = {
    "fp8": Codec(_fp8, _by_row),
    "int8": Codec(_int8, _by_row),
    "nf4": Codec(_nf4, _by_block),
}


# ---- layers that multiply by a stored weight -------------------------------------------------------------------------

_KEPT = ("weight", "stored_1", "stored_2")  # names of parameters


@dataclass(frozen=True)
class _Layer:
    """A linear or convolution layer. What is kept of its weight becomes its parameters, which move and are counted."""

    layer: Any
    codec: Codec
    shape: torch.Size

    def store(self) -> None:
        kept = self.codec.encode(self.layer.weight.detach().float())
        for name, tensor in zip(_KEPT, kept, strict=False):
            self.layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.layer.forward = self.multiplied

    def tensors(self) -> list[Tensor]:
        own = self.layer._parameters
        return [own[name] for name in _KEPT if name in own]

    def restore(self, dtype: torch.dtype) -> None:
        if self.layer.__dict__.pop("forward", None) is not None:
            weight = self.codec.decode(self.shape, dtype, *self.tensors())
            self.layer.weight = nn.Parameter(weight, requires_grad=False)
        for name in _KEPT[1:]:
            self.layer._parameters.pop(name, None)

    def multiplied(self, x: Tensor) -> Tensor:
        wide, layer = partial(self.codec.decode, self.shape), self.layer
        how = (layer.stride, layer.padding, layer.dilation, layer.groups) if len(self.shape) == 4 else None
        return cast("Tensor", _Product.apply(x, wide, how, layer.bias, *self.tensors()))


class _Product(torch.autograd.Function):
    """x W^T + b, or a convolution by W: `how` is its stride, padding, dilation and groups.

    Saves only what is kept of W for the backward pass. `wide`: (dtype, what is kept) -> W.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: Callable[..., Tensor], how: Any, bias: Tensor | None, *kept: Tensor) -> Any:
        ctx.save_for_backward(*kept)
        ctx.wide, ctx.size, ctx.how = wide, x.shape, how
        weight = wide(x.dtype, *kept)
        return F.linear(x, weight, bias) if how is None else F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), kept = gradients, ctx.saved_tensors
        weight = ctx.wide(gradient.dtype, *kept)
        found = gradient @ weight if ctx.how is None else grad.conv2d_input(ctx.size, weight, gradient, *ctx.how)
        return found, None, None, None, *[None] * len(kept)

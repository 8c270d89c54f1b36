"""Reading features and attention maps of chosen layers out of a UNet's forward pass.

Plain forward hooks on `attn1` and on `attn2.to_q`, `attn2.to_k`: they add no operation to the pass, so fused attention
stays in place and non-reentrant checkpointing recomputes what it saved. The maps are formed afterwards, outside.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Layers = Literal["up", "mid+up", "all"]
_BLOCKS: dict[str, tuple[str, ...]] = {
    "up": ("up_blocks",),
    "mid+up": ("mid_block", "up_blocks"),
    "all": ("down_blocks", "mid_block", "up_blocks"),
}


@dataclass
class Captured:
    """What one forward pass left behind, by layer, in the order of the UNet."""

    features: dict[str, Tensor] = field(default_factory=dict)  # attn1's output (N, positions, channels)
    queries: dict[str, Tensor] = field(default_factory=dict)  # attn2 (N, positions, heads * head_dim)
    keys: dict[str, Tensor] = field(default_factory=dict)  # attn2 (N, tokens, heads * head_dim)


def attention_layers(unet: nn.Module, kind: Literal["attn1", "attn2"], layers: Layers) -> dict[str, nn.Module]:
    """The UNet's self- (`attn1`) or cross-attention (`attn2`) modules in the decoder, or in more of it, by name."""
    pattern = re.compile(rf"({'|'.join(_BLOCKS[layers])})\..*\.{kind}")
    return {name: module for name, module in unet.named_modules() if pattern.fullmatch(name)}


@contextlib.contextmanager
def capture(unet: nn.Module, *, features: Layers | None, attention: Layers | None) -> Iterator[Captured]:
    """Record one forward pass made inside the block; None: nothing of that kind.

    The hooks are gone when the block ends, before the backward pass, so a recomputation records nothing.
    """
    captured, handles = Captured(), []

    def record(store: dict[str, Tensor], name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            assert name not in store, f"{name} ran twice in one captured pass"
            store[name] = output

        handles.append(module.register_forward_hook(hook))

    try:
        for name, module in attention_layers(unet, "attn1", features).items() if features else ():
            record(captured.features, name, module)
        for name, module in attention_layers(unet, "attn2", attention).items() if attention else ():
            record(captured.queries, name, module.get_submodule("to_q"))
            record(captured.keys, name, module.get_submodule("to_k"))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def attention_maps(
    unet: nn.Module, captured: Captured, columns: Tensor, num_columns: int, *, save_memory: bool = False
) -> list[Tensor]:
    """Cross-attention maps softmax(Q K^T / sqrt(d)), summed into matched columns, one per captured layer.

    `columns`: int64 (N, tokens), the column of each token. Result: float32 (N, heads, positions, num_columns); rows
    sum to 1. `save_memory` forms them again in the backward pass instead of keeping the full softmax.
    """
    maps = []
    for name, query in captured.queries.items():
        attention: Any = unet.get_submodule(name)
        arguments = (query, captured.keys[name], columns, num_columns, attention.heads, attention.scale)
        maps.append(
            checkpoint(_column_map, *arguments, use_reentrant=False) if save_memory else _column_map(*arguments)
        )
    return maps


def _column_map(query: Tensor, key: Tensor, columns: Tensor, num_columns: int, heads: int, scale: float) -> Tensor:
    probabilities = attention_probabilities(query, key, heads, scale)
    # A product with 0/1 rather than scatter_add: the latter is not deterministic on CUDA.
    member = torch.nn.functional.one_hot(columns, num_columns).to(probabilities.dtype)  # (N, tokens, columns)
    return probabilities @ member[:, None]


def attention_probabilities(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(Q K^T * scale) in float32: (N, positions, C), (N, tokens, C) -> (N, heads, positions, tokens)."""
    query, key = (x.float().unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key))
    return torch.softmax(query @ key.transpose(-1, -2) * scale, dim=-1)

"""Reading features and attention maps of chosen layers out of a UNet's forward pass.

Plain forward hooks on `attn1` and on `attn2.to_q`, `attn2.to_k`: they add no operation to the pass, so fused attention
stays in place and non-reentrant checkpointing recomputes what it saved. The maps are formed afterwards, outside.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Layers

_Kept = TypeVar("_Kept")
_BLOCKS: dict[Layers, tuple[str, ...]] = {
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
    heads: dict[str, tuple[int, float]] = field(default_factory=dict)  # attn2: their number, the scale of the scores

    def part(self, layers: Layers) -> Captured:
        """What a part of the UNet left behind."""
        return Captured(
            _in(layers, self.features), _in(layers, self.queries), _in(layers, self.keys), _in(layers, self.heads)
        )


def attention_layers(unet: nn.Module, kind: Literal["attn1", "attn2"], layers: Layers) -> dict[str, nn.Module]:
    """The UNet's self- (`attn1`) or cross-attention (`attn2`) modules in the decoder, or in more of it, by name."""
    pattern = re.compile(rf"({'|'.join(_BLOCKS[layers])})\..*\.{kind}")
    return {name: module for name, module in unet.named_modules() if pattern.fullmatch(name)}


def widest(parts: Iterable[Layers | None]) -> Layers | None:
    """The part of the UNet that holds all of these; None: there are none."""
    return max((part for part in parts if part), key=lambda part: len(_BLOCKS[part]), default=None)


def _in(layers: Layers, store: dict[str, _Kept]) -> dict[str, _Kept]:
    return {name: kept for name, kept in store.items() if name.partition(".")[0] in _BLOCKS[layers]}


class Capture:
    """Reads chosen layers of a UNet in its forward passes; the layers are found here, once.

    `features`, `attention`: the part whose self- and cross-attention is read; None: nothing of that kind. To be made
    after the adapter is on, as that takes the place of layers.
    """

    def __init__(self, unet: nn.Module, *, features: Layers | None, attention: Layers | None) -> None:
        self._features = attention_layers(unet, "attn1", features) if features else {}
        self._attention: dict[str, Any] = dict(attention_layers(unet, "attn2", attention)) if attention else {}

    @contextlib.contextmanager
    def record(self) -> Iterator[Captured]:
        """Record one forward pass made inside the block.

        The hooks are gone when the block ends, before the backward pass, so a recomputation records nothing.
        """
        heads = {name: (module.heads, module.scale) for name, module in self._attention.items()}
        captured = Captured(heads=heads)
        wanted = [(captured.features, name, module) for name, module in self._features.items()]
        for name, module in self._attention.items():
            wanted += [(captured.queries, name, module.to_q), (captured.keys, name, module.to_k)]
        handles = [module.register_forward_hook(_keep_in(store, name)) for store, name, module in wanted]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


def _keep_in(store: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        assert name not in store, f"{name} ran twice in one captured pass"
        store[name] = output

    return hook


def attention_maps(captured: Captured, columns: Tensor, num_columns: int, *, save_memory: bool = False) -> list[Tensor]:
    """Cross-attention maps softmax(Q K^T / sqrt(d)), summed into matched columns, one per captured layer.

    `columns`: int64 (N, tokens), the column of each token. Result: float32 (N, heads, positions, num_columns); rows
    sum to 1. `save_memory` forms them again in the backward pass instead of keeping the full softmax.
    """
    maps = []
    for name, query in captured.queries.items():
        arguments = (query, captured.keys[name], columns, num_columns, *captured.heads[name])
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

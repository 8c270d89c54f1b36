"""Captures features and attention maps of chosen layers during a network's forward pass; merges maps of several layers.

Plain forward hooks on the layers the family names add no operation to the pass. Fused attention stays in place, and
non-reentrant checkpointing recomputes what it saved. The maps are computed afterwards, outside the pass.
Drawing them is up to `report.attention_tiles`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from ..config import Layers
from ..families.network import AttentionLayer, Network

Result = TypeVar("Result")


@dataclass
class Captured:
    """What one forward pass recorded, by layer, in the network's order."""

    features: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # (N, positions, channels)
    queries: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # (N, positions, heads * head_dim)
    keys: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # (N, tokens, heads * head_dim)
    layers: Mapping[str, AttentionLayer] = field(default_factory=dict[str, AttentionLayer])  # of queries and keys


class Capture:
    """Records chosen layers of a network in its forward passes; the layers are looked up once, here.

    `features`, `attention`: the parts of the network to record, afterwards the layers of each. Create it after the
    adapter is attached, because the adapter replaces layers.
    """

    def __init__(
        self,
        network: Network,
        module: nn.Module,
        *,
        features: Collection[Layers] = (),
        attention: Collection[Layers] = (),
    ) -> None:
        self.features = {part: network.features(module, part) for part in features}
        self.attention = {part: network.attention(module, part) for part in attention}
        self._features = {name: layer for part in self.features.values() for name, layer in part.items()}
        self._layers = {name: layer for part in self.attention.values() for name, layer in part.items()}
        readers = (module for layer in self._layers.values() for module in (layer.query, layer.key))
        self.hooked = {*(layer.module for layer in self._features.values()), *readers}  # whose outputs are recorded

    @contextlib.contextmanager
    def record(self) -> Generator[Captured]:
        """Record one forward pass made inside the block.

        The hooks are removed when the block ends, before the backward pass, so recomputation records nothing. Only then
        do the layers' outputs take their forms: a block that is recomputed must not have computed more than itself.
        """
        captured, layers = Captured(layers=self._layers), self._layers
        wanted = [
            *((captured.features, name, layer.module, layer.output_of) for name, layer in self._features.items()),
            *((captured.queries, name, layer.query, layer.query_of) for name, layer in layers.items()),
            *((captured.keys, name, layer.key, layer.key_of) for name, layer in layers.items()),
        ]
        with contextlib.ExitStack() as hooks:
            for store, name, module, _ in wanted:
                hooks.enter_context(module.register_forward_hook(_keep_in(store, name)))
            yield captured
        for store, name, _, form in wanted:
            if name in store:  # the block made a pass
                store[name] = form(store[name])


def attention_capture(network: Network, module: nn.Module, *parts: Layers) -> Capture | None:
    """Captures the attention of the first of these parts that has any; None: none of them has."""
    found: list[Layers] = [part for part in parts if network.attention(module, part)]
    return Capture(network, module, attention=found[:1]) if found else None


def _keep_in(store: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        assert name not in store, f"{name} ran twice in one captured pass"
        store[name] = output

    return hook


def attention_maps(
    captured: Captured,
    columns: Tensor,
    num_columns: int,
    *,
    mask: Tensor | None = None,
    names: Collection[str] | None = None,
    save_memory: bool = False,
) -> list[Tensor]:
    """softmax(Q K^T / sqrt(d)) over the caption's tokens, summed into matched columns; one map per captured layer.

    `columns`: int64 (N, tokens), the column of each token. Result: float32 (N, heads, positions, num_columns); rows
    sum to 1. `mask`: see `TextInput`; padding has no weight. `names`: only these layers. `save_memory` recomputes
    the maps in the backward pass instead of keeping the full softmax.
    """
    maps: list[Tensor] = []
    member = F.one_hot(columns, num_columns).float()  # (N, tokens, columns)
    for name in (name for name in captured.queries if names is None or name in names):
        layer = captured.layers[name]
        arguments = (captured.queries[name], captured.keys[name], member, layer.heads, layer.scale, mask)
        maps.append(recomputed(_column_map, *arguments) if save_memory else _column_map(*arguments))
    return maps


def recomputed(form: Callable[..., Result], *arguments: object) -> Result:
    """`form(*arguments)`, recomputed in the backward pass, so that only the arguments are kept."""
    return cast("Any", checkpoint.checkpoint(form, *arguments, use_reentrant=False))


def _column_map(query: Tensor, key: Tensor, member: Tensor, heads: int, scale: float, mask: Tensor | None) -> Tensor:
    # A product with 0/1 rather than scatter_add, which is not deterministic on CUDA.
    return attention_probabilities(query, key, heads, scale, mask) @ member[:, None]


def attention_probabilities(query: Tensor, key: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T * scale) in float32: (N, positions, C), (N, tokens, C) -> (N, heads, positions, tokens)."""
    query, key = _by_head(query, heads), _by_head(key, heads)
    scores = (query @ key.transpose(-1, -2)).mul_(scale)  # in place: it is the largest tensor of a pass
    if mask is not None:
        scores.masked_fill_(~mask[:, None, None], -torch.inf)
    return torch.softmax(scores, dim=-1)


def _by_head(x: Any, heads: int) -> Tensor:  # Any: torch leaves `unflatten` untyped
    return x.float().unflatten(2, (heads, -1)).transpose(1, 2)


def merge_layers(maps: Sequence[Tensor], aspect: float) -> Tensor:
    """Average maps (positions, columns) of layers of different sizes -> (columns, h, w) at the finest size.

    `aspect`: height / width of the latent.
    """
    grids = [_grid(layer, aspect) for layer in maps]
    size = max((grid.shape[-2:] for grid in grids), key=math.prod)
    scaled = [F.interpolate(grid[None], size=size, mode="bilinear", align_corners=False)[0] for grid in grids]
    return torch.stack(scaled).mean(dim=0).cpu().contiguous()


def _grid(layer: Tensor, aspect: float) -> Tensor:
    positions = layer.shape[0]
    # Downsampling rounds odd latents up, so the sides are searched, not computed: the divisor nearest in aspect.
    divisors = [h for h in range(1, positions + 1) if positions % h == 0]
    height = min(divisors, key=lambda h: abs(math.log(h * h / positions / aspect)))
    return layer.T.reshape(-1, height, positions // height).float()

"""Merges attention maps of layers of several sizes into one map per token.

In: the arithmetic. Not in: capturing maps (`training.capture`), drawing them (`report.attention_tiles`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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

"""What a UNet's layers are called in a LoRA file.

Kohya's names load in every program: `lora_unet_` and the layer's path with underscores. SD1.5's path is that
of diffusers; SDXL's is that of sgm, the code SDXL was published with, which counts its blocks in one row.
In: attention and feed-forward layers, which is where our adapters sit. Not in: convolutions, text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..families.components import Family

_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.attentions\.0\.(.+)")


def kohya_name(module: str, family: Family, unet_config: Mapping[str, Any]) -> str | None:
    """The name of a diffusers UNet layer in a LoRA file; None: SDXL has no name for it here."""
    path = sgm_path(module, unet_config) if family.is_sdxl else module
    return None if path is None else "lora_unet_" + path.replace(".", "_")


def sgm_path(module: str, unet_config: Mapping[str, Any]) -> str | None:
    """`down_blocks.1.attentions.0.X` -> `input_blocks.4.1.X`, for any block counts; None: outside attention.

    sgm's row of input blocks is: the first convolution, then per level its residual layers and one
    downsampler; the row of output blocks has one residual layer more per level and no block for the
    upsampler. Attention is the second part (`.1`) of its block.
    """
    if middle := _MIDDLE.fullmatch(module):
        return f"middle_block.1.{middle[1]}"
    found = _ATTENTION.fullmatch(module)
    if found is None:
        return None
    side, level, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
    counts = _layers_per_level(unet_config)
    if side == "up":
        counts = counts[::-1]
    blocks_before = sum(count + 1 for count in counts[:level])
    row, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    return f"{row}.{first + blocks_before + layer}.1.{rest}"


def _layers_per_level(unet_config: Mapping[str, Any]) -> list[int]:
    layers = unet_config["layers_per_block"]
    return [layers] * len(unet_config["down_block_types"]) if isinstance(layers, int) else list(layers)

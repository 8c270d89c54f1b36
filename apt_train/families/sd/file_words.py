"""What files of Stable Diffusion's LoRAs say it is, and what SDXL's layers are called in them.

SD1.5's layers go by diffusers' paths; SDXL's by those of sgm, the code SDXL was published with, which counts its blocks
in one row. In: attention and feed-forward layers, where our adapters sit. Not in: convolutions, text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..file_words import FileWords
from .layer_names import encoder_names, model_of, unet_names

_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.attentions\.0\.(.+)")


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


_words = partial(FileWords, network_names=unet_names, encoder_names=encoder_names, model_of=model_of)
FILE_WORDS = {
    "sd15": _words("stable-diffusion-v1", "sd_v1"),
    "sdxl": _words("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "sgm", sgm_path),
    "custom": _words(),  # any other UNet2DConditionModel, the embedded default say
}

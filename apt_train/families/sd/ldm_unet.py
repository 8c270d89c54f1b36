"""The UNet of a single file: derives its diffusers configuration from the tensors' names and shapes.

Block counts, widths and transformer depths all come from the file. That covers pruned UNets too: SSD-1B with uneven
depths and no attention in the middle block, KOALA with single blocks and no middle block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...disk.tensor_file import size_of
from ...errors import InputError
from ..file_words import layer_paths
from .config_tables import checked_unet
from .layer_names import count_numbered, original_path
from .published import FamilySpec

Shapes = Mapping[str, tuple[int, ...]]
WHAT = "The checkpoint's UNet"
MOST_MODULES = 100  # on either side of the UNet; SD1.5 has 12
_SAMPLER = re.compile(r"\w+\.\d+\.\d+\.(op|conv)\.weight")  # alone, or last after a residual block and a transformer


@dataclass
class Level:
    """The blocks at one resolution: channels of each residual block, depth of the transformer after it (0: none)."""

    channels: list[int] = field(default_factory=list[int])
    depths: list[int] = field(default_factory=list[int])


@dataclass
class UNetLayout:
    """The result of walking the tensors."""

    down: list[Level]
    middle: int | None  # transformer depth; 0: a single residual block; None: no middle block
    up: list[Level]


def read_layout(shapes: Shapes) -> UNetLayout:
    """Walk the blocks of an original Stable Diffusion UNet (names without `model.diffusion_model.`)."""
    middle = _depth(shapes, "middle_block.1") if "middle_block.0.in_layers.2.weight" in shapes else None
    return UNetLayout(_walk(shapes, "input_blocks", 1), middle, _walk(shapes, "output_blocks", 0))


def _walk(shapes: Shapes, source: str, first: int) -> list[Level]:
    levels = [Level()]
    for index in range(first, MOST_MODULES):
        prefix = f"{source}.{index}"
        block = [name for name in shapes if name.startswith(f"{prefix}.")]
        if not block:
            break
        if f"{prefix}.0.in_layers.2.weight" in shapes:
            levels[-1].channels.append(size_of(shapes, f"{prefix}.0.in_layers.2.weight", 0, WHAT))
            levels[-1].depths.append(_depth(shapes, f"{prefix}.1"))
        if any(_SAMPLER.fullmatch(name) for name in block):
            levels.append(Level())
    return levels


def _depth(shapes: Shapes, prefix: str) -> int:
    """The number of transformer blocks under `prefix`."""
    return count_numbered(shapes, re.escape(prefix) + r"\.transformer_blocks\.(\d{1,4})\.")


def unet_config(shapes: Shapes, layout: UNetLayout, family: FamilySpec) -> dict[str, Any]:
    """Keyword arguments of `UNet2DConditionModel`: the family's published settings, completed from the tensors."""
    widths = [_only_width(level) for level in layout.down]
    _check_mirror(layout)
    config = {
        **family.unet,
        "in_channels": size_of(shapes, "input_blocks.0.0.weight", 1, WHAT),
        "out_channels": size_of(shapes, "out.2.weight", 0, WHAT),
        "block_out_channels": tuple(widths),
        "layers_per_block": _scalar_if_equal([len(level.channels) for level in layout.down]),
        "down_block_types": tuple(_block_type(level, "Down") for level in layout.down),
        "up_block_types": tuple(_block_type(level, "Up") for level in layout.up),
        "mid_block_type": {None: None, 0: "UNetMidBlock2D"}.get(layout.middle, "UNetMidBlock2DCrossAttn"),
        "cross_attention_dim": context_dim(shapes),
        "attention_head_dim": _scalar_if_equal([family.heads(width) for width in widths]),
        "use_linear_projection": any(len(shapes[name]) == 2 for name in shapes if name.endswith("proj_in.weight")),
        **_depth_settings(layout),
    }
    if "label_emb.0.0.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = size_of(shapes, "label_emb.0.0.weight", 1, WHAT)
    return checked_unet(config, WHAT)


def original_layers(unet: nn.Module) -> dict[str, str]:
    """Path in the original code -> layer path, for every UNet layer with its own weights."""
    named = {path: original_path(path, unet.config) for path in layer_paths(unet)}  # type: ignore[arg-type]
    return {original: path for path, original in named.items() if original is not None}


def context_dim(shapes: Shapes) -> int | None:
    """Width of the text embedding that cross-attention reads; None: no cross-attention."""
    return next((size_of(shapes, name, 1, WHAT) for name in shapes if name.endswith("attn2.to_k.weight")), None)


def _depth_settings(layout: UNetLayout) -> dict[str, Any]:
    """`transformer_layers_per_block` per level, and its counterpart for the decoder if that is no mirror image.

    A level without transformers gets 1, as in the published configurations, except the last: diffusers takes the
    middle block's depth from it.
    """
    last = layout.down[-1]
    down = [_scalar_if_equal(level.depths) or 1 for level in layout.down]
    if layout.middle and not any(last.depths):
        down[-1] = layout.middle
    if layout.middle and _first(down[-1]) != layout.middle:
        raise _unsupported(f"a middle block of depth {layout.middle} beside a last level of depth {_first(down[-1])}")
    up = [_scalar_if_equal(level.depths) or 1 for level in layout.up]
    mirrored = all(
        isinstance(mirror, int) and (depth == mirror or not any(level.depths))
        for level, depth, mirror in zip(layout.up, up, reversed(down), strict=True)
    )
    if mirrored:
        return {"transformer_layers_per_block": _scalar_if_equal(down)}
    return {"transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up}


def _first(depth: int | tuple[int, ...]) -> int:
    return depth if isinstance(depth, int) else depth[0]


def _block_type(level: Level, side: str) -> str:
    if any(level.depths) and not all(level.depths):
        raise _unsupported("a level where only some blocks have attention")
    return f"CrossAttn{side}Block2D" if any(level.depths) else f"{side}Block2D"


def _check_mirror(layout: UNetLayout) -> None:
    """diffusers can only build a decoder with the encoder's levels, each with one block more."""
    expected = [(level.channels[0], len(level.channels) + 1) for level in reversed(layout.down)]
    found = [(_only_width(level), len(level.channels)) for level in layout.up]
    if expected != found:
        raise _unsupported(f"a decoder of (channels, blocks) {found} where {expected} would mirror the encoder")


def _only_width(level: Level) -> int:
    if len(set(level.channels)) != 1:
        raise _unsupported(f"channels in a level: {level.channels}")
    return level.channels[0]


def _scalar_if_equal(values: list[Any]) -> Any:
    return values[0] if len(set(map(str, values))) == 1 else tuple(values)


def _unsupported(what: str) -> InputError:
    return InputError(f"{WHAT} has {what}, which is not supported: use an SD1.5- or SDXL-shaped checkpoint.")

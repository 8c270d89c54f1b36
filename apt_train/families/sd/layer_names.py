"""All names by which LoRA files call a layer of Stable Diffusion's UNet or its text encoders.

The names are generated from the model's own layers, so that a file's keys are looked up, never guessed. Not in: the
contents of a file (`lora_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..file_words import layer_paths, plain_encoder_names, plain_names

# diffusers' names -> the original code's: inside a residual block, and outside all blocks.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MIDDLE = re.compile(r"mid_block\.(?:resnets\.([01])|attentions\.0)\.(.+)")
_SIDES = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def unet_names(unet: nn.Module) -> dict[str, str]:
    """Name in a file -> layer path, for every UNet layer with its own weights.

    Covers the names of kohya (for diffusers' and for the original blocks), LyCORIS, peft, diffusers (including its
    older attention processors), ComfyUI and the OMI standard (OneTrainer's own).
    """
    names = plain_names(unet)
    for path in layer_paths(unet):
        old = path.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")
        found = [old, f"unet.{old}"]
        original = original_path(path, unet.config)  # type: ignore[arg-type]
        if original is not None:
            found.append(f"lora_unet_{original.replace('.', '_')}")
            found += [f"{lead}{original}" for lead in ("diffusion_model.", "model.diffusion_model.", "unet.")]
        for name in found:
            names.setdefault(name, path)
    return names


def encoder_names(encoder: nn.Module, number: int, count: int, key: str) -> dict[str, str]:
    """Likewise for text encoder `number` (from 1) of `count`; `key`: ComfyUI's name for it (`clip_l`).

    Files made with transformers 5 lack `text_model.` where its modules do.
    """
    leads = f"text_encoders.{key}.transformer.", f"{key}.transformer.", f"{key}."
    return plain_encoder_names(encoder, number, count, key, _with_and_without_text_model, *leads)


def _with_and_without_text_model(path: str) -> tuple[str, ...]:
    bare = path.removeprefix("text_model.")
    return (bare,) if bare.startswith("text_projection") else (bare, f"text_model.{bare}")


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the pattern's group finds at the start of a name; 0: it finds none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def original_path(path: str, config: Mapping[str, Any]) -> str | None:
    """A diffusers layer's path in the original code (`input_blocks.4.1...`), for any number of blocks.

    Attention is the second part (`.1`) of its block.
    """
    if path in _OUTER:
        return _OUTER[path]
    if middle := _MIDDLE.fullmatch(path):
        number, rest = middle.groups()
        return f"middle_block.{1 if number is None else 2 * int(number)}.{_RESNET.get(rest, rest)}"
    found = _SIDES.fullmatch(path)
    if found is None:
        return None
    side, level, part, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    row, first, layers = _blocks(side, level, config)
    if part == "attentions":
        return f"{row}.{first + number}.1.{rest}"
    if part == "downsamplers":
        return f"{row}.{first + layers}.0.op"
    if part == "upsamplers":
        attends = "CrossAttn" in config["up_block_types"][level]
        return f"{row}.{first + layers}.{2 if attends else 1}.conv"
    return f"{row}.{first + number}.0.{_RESNET.get(rest, rest)}"


def _blocks(side: str, level: int, unet_config: Mapping[str, Any]) -> tuple[str, int, int]:
    """sgm's list of blocks on that side, the index of the level's first block in it, and its number of residual layers.

    The input list holds the first convolution, then per level its residual layers and a downsampler. The output list
    has one more residual layer per level and no separate block for the upsampler.
    """
    layers = unet_config["layers_per_block"]
    counts = [layers] * len(unet_config["down_block_types"]) if isinstance(layers, int) else list(layers)
    if side == "up":
        counts.reverse()
    row, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    return row, first + sum(count + 1 for count in counts[:level]), counts[level]


def model_of(layers: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The kind of model a LoRA is for, by layer names and the width of the text it reads; empty: unknown."""
    names = list(layers)
    for mark, family in (("double_blocks", "FLUX"), ("joint_blocks", "SD3")):
        if any(mark in name for name in names):
            return family
    readers = ("attn2_to_k", "attn2.to_k", "attn2.processor.to_k")
    downs = [parts["down"] for name, parts in layers.items() if name.endswith(readers) and "down" in parts]
    widths = {down.flatten(1).shape[1] for down in downs if down.ndim > 1}
    families = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
    return next((families[width] for width in widths if width in families), "")

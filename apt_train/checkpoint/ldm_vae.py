"""The VAE of a single file: the families' AutoencoderKL, or the tiny autoencoder (TAESD) some files carry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from ..errors import InputError
from .families import FamilySpec
from .meta_build import build
from .tensor_file import TensorFile

PREFIX = "first_stage_model."
_UNUSED = re.compile(r"^(loss\.|model_ema\.|vae_scale$|vae_shift$)")
_PLAIN = (
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".downsample.conv.", ".downsamplers.0.conv."),
    (".upsample.conv.", ".upsamplers.0.conv."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def load_vae(file: TensorFile, family: FamilySpec) -> AutoencoderKL | AutoencoderTiny:
    """The file's VAE in float32. InputError when it has none, or one of another build."""
    tensors = {name: tensor for name, tensor in file.load_under(PREFIX).items() if not _UNUSED.match(name)}
    what = f"The VAE in {file.path.name}"
    if "taesd_encoder.0.weight" in tensors:
        return build(AutoencoderTiny, from_taesd(tensors), what=what, dtype=torch.float32)
    if not tensors.keys() >= {
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.conv1.weight",
        "decoder.conv_in.weight",
    }:
        raise InputError(
            f"{file.path.name} holds no VAE, or none in the layout of SD1.5 and SDXL ({PREFIX}encoder.down...): use a "
            "full checkpoint, one that has UNet, text encoder and VAE."
        )
    config = vae_config({name: tuple(tensor.shape) for name, tensor in tensors.items()}, family)
    return build(lambda: AutoencoderKL(**config), from_ldm(tensors), what=what, dtype=torch.float32)


def vae_config(shapes: Mapping[str, tuple[int, ...]], family: FamilySpec) -> dict[str, Any]:
    """Keyword arguments of `AutoencoderKL`: the published settings completed from the tensors (LDM names)."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [shapes.get(f"encoder.down.{level}.block.0.conv1.weight", (32,))[0] for level in range(levels)]
    return {
        **family.vae,
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    found = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def from_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original names to diffusers'; the decoder's levels count the other way round there."""
    levels = _count(tensors, r"decoder\.up\.(\d+)\.")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in _PLAIN:
            name = name.replace(old, new)
        name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}.", name)
        name = re.sub(r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets.", name)
        if found := re.match(r"(.*\.attentions\.0)\.(norm|q|k|v|proj_out)\.(weight|bias)$", name):
            name = f"{found[1]}.{_ATTENTION[found[2]]}.{found[3]}"
            tensor = tensor.flatten(1) if tensor.dim() == 4 else tensor  # 1x1 convolutions there, linear layers here
        renamed[name] = tensor
    return renamed


def from_taesd(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAESD's layer numbers to diffusers': its decoder starts with a clamp that diffusers keeps outside the list."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := re.match(r"taesd_(encoder|decoder)\.(\d+)\.(.*)$", name):
            layer = int(found[2]) - (found[1] == "decoder")
            name = f"{found[1]}.layers.{layer}.{found[3]}"
        renamed[name] = tensor
    return renamed

"""The VAE of a single file: the families' AutoencoderKL, or the tiny autoencoder (TAESD) that some files carry.

Also a VAE in a file by itself, under original or diffusers names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from ...disk.tensor_file import TensorFile, size_of
from ...errors import InputError
from ..reading.meta_build import build
from .config_tables import KL_VAE, checked_vae
from .layer_names import count_numbered
from .published import FamilySpec

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
_FIRST_BLOCK = "encoder.down_blocks.{}.resnets.0.conv1.weight"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def load_vae(file: TensorFile, family: FamilySpec) -> AutoencoderKL | AutoencoderTiny:
    """The checkpoint's own VAE in float32. InputError: it has none, or one of another architecture."""
    if not file.has_prefix(PREFIX):
        raise InputError(
            f"{file.path.name} holds no VAE under {PREFIX}: use a full checkpoint, or give a VAE beside it (--vae)."
        )
    return vae_from_tensors(file.load_under(PREFIX), family.vae, f"The VAE in {file.path.name}")


def vae_from_tensors(
    given: Mapping[str, Tensor], settings: Mapping[str, Any], what: str
) -> AutoencoderKL | AutoencoderTiny:
    """A VAE in float32 from bare tensors, under the original names, TAESD's or diffusers'.

    `settings`: what tensors cannot tell, above all the scale of the latents, as in a VAE's config.json. `what` names
    the VAE in errors. InputError: tensors of another architecture.
    """
    tensors = {name: tensor for name, tensor in given.items() if not _UNUSED.match(name)}
    if "taesd_encoder.0.weight" in tensors:
        return build(AutoencoderTiny, from_taesd(tensors), what=what, dtype=torch.float32)
    if "encoder.layers.0.weight" in tensors and "decoder.layers.0.weight" in tensors:
        return build(AutoencoderTiny, tensors, what=what, dtype=torch.float32)
    named = {new_attention_name(name): tensor for name, tensor in from_ldm(tensors).items()}
    if not named.keys() >= {"encoder.conv_in.weight", _FIRST_BLOCK.format(0), "decoder.conv_in.weight"}:
        raise InputError(
            f"{what} is none in the layout of SD1.5 and SDXL (encoder.down... and decoder.up...): give a VAE of theirs."
        )
    config = vae_config({name: tuple(tensor.shape) for name, tensor in named.items()}, settings, what)
    return build(lambda: AutoencoderKL(**config), named, what=what, dtype=torch.float32)


def vae_config(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Keyword arguments of `AutoencoderKL`: the published settings, completed from the tensors (diffusers' names)."""
    levels = count_numbered(shapes, r"encoder\.down_blocks\.(\d{1,4})\.")
    config = {
        **settings,
        "block_out_channels": [size_of(shapes, _FIRST_BLOCK.format(level), 0, what) for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count_numbered(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d{1,4})\."),
        "latent_channels": size_of(shapes, "decoder.conv_in.weight", 1, what),
    }
    return checked_vae(config, KL_VAE, what)


def new_attention_name(name: str) -> str:
    """Older diffusers files use other names for the VAE's attention layers."""
    stem, _, rest = name.rpartition(".attentions.0.")
    module, _, kind = rest.rpartition(".")
    return f"{stem}.attentions.0.{_OLD_ATTENTION[module]}.{kind}" if stem and module in _OLD_ATTENTION else name


def from_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original names to diffusers'; the decoder's levels are numbered in reverse there."""
    levels = count_numbered(tensors, r"decoder\.up\.(\d{1,4})\.")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in _PLAIN:
            name = name.replace(old, new)
        name = re.sub(r"^encoder\.down\.(\d{1,4})\.", r"encoder.down_blocks.\1.", name)
        if found := re.match(r"decoder\.up\.(\d{1,4})\.", name):
            name = f"decoder.up_blocks.{levels - 1 - int(found[1])}.{name[found.end() :]}"
        name = re.sub(r"_blocks\.(\d{1,4})\.block\.", r"_blocks.\1.resnets.", name)
        if found := re.match(r"(.*\.attentions\.0)\.(norm|q|k|v|proj_out)\.(weight|bias)$", name):
            name = f"{found[1]}.{_ATTENTION[found[2]]}.{found[3]}"
            tensor = tensor.flatten(1) if tensor.dim() == 4 else tensor  # 1x1 convolutions there, linear layers here
        renamed[name] = tensor
    return renamed


def from_taesd(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAESD's layer numbers to diffusers'. Its decoder starts with a clamp that diffusers keeps outside the list."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := re.match(r"taesd_(encoder|decoder)\.(\d{1,4})\.(.*)$", name):
            layer = int(found[2]) - (found[1] == "decoder")
            name = f"{found[1]}.layers.{layer}.{found[3]}"
        renamed[name] = tensor
    return renamed

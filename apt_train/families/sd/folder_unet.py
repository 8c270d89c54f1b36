"""The UNet of a diffusers folder: configuration check, refusal of unsupported inputs, weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...disk.json_file import AGAIN, place, read_json_object, shown
from ...errors import InputError
from .config_tables import TENSORS_PER_BLOCK, checked_unet, unet_blocks
from .folder_index import is_lcm, title_of
from .meta_build import build, refuse_quantised_config
from .weight_files import load_part


def checked_unet_config(part: Path) -> dict[str, Any]:
    values = read_json_object(part / "config.json")
    refuse_quantised_config(values, title_of(part))
    _refuse_other_text(part.parent, values)
    return checked_unet(values, place(part / "config.json"))


def load_folder_unet(part: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> UNet2DConditionModel:
    tensors = load_part(part)
    if (blocks := unet_blocks(config)) * TENSORS_PER_BLOCK > len(tensors):
        raise InputError(
            f"{place(part / 'config.json')} describes {blocks} blocks, more than its {len(tensors)} tensors can be: "
            f"{AGAIN}."
        )
    return build(lambda: UNet2DConditionModel(**config), tensors, what=title_of(part), dtype=dtype)


def _refuse_other_text(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse UNets with more input than timestep, text and SDXL's size ids."""
    if values.get("time_cond_proj_dim") is not None:
        raise is_lcm(folder, "UNet has time_cond_proj_dim")
    for setting in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if values.get(setting) is not None:
            raise InputError(
                f"{folder.name} has a UNet with {setting}, an input of its own: give a model that reads text alone."
            )
    if (kind := values.get("addition_embed_type")) not in (None, "text_time"):
        raise InputError(
            f"{folder.name} has a UNet with addition_embed_type {shown(kind)}: give a model of SD1.5 or SDXL shape."
        )

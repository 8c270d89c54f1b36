"""The UNet of a diffusers folder, and its text encoders with their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...disk.json_file import AGAIN, place, read_json_object, short_name, shown
from ...errors import InputError
from ..components import Choices, TextEncoder
from ..reading.meta_build import build, refuse_quantised_config
from ..reading.tokenizer_files import find_clip_vocabulary, load_tokenizer
from ..reading.weight_files import load_part
from .config_tables import TENSORS_PER_BLOCK, checked_unet, unet_blocks
from .folder_index import lcm_refusal, title_of
from .ldm_text import build_text_encoder, checked_text_config

_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def checked_unet_config(part: Path) -> dict[str, Any]:
    values = read_json_object(part / "config.json")
    refuse_quantised_config(values, title_of(part))
    _refuse_other_text(part.parent, values)
    return checked_unet(values, place(part / "config.json"))


def load_folder_unet(part: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> UNet2DConditionModel:
    tensors = load_part(part)
    if (blocks := unet_blocks(config)) * TENSORS_PER_BLOCK > len(tensors):
        raise InputError(
            f"{place(part / 'config.json')} describes more blocks ({blocks}) than its tensors can be "
            f"({len(tensors)}): {AGAIN}."
        )
    return build(lambda: UNet2DConditionModel(**config), tensors, what=title_of(part), dtype=dtype)


def _refuse_other_text(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse UNets with more input than timestep, text and SDXL's size ids."""
    if values.get("time_cond_proj_dim") is not None:
        raise lcm_refusal(folder, "UNet has time_cond_proj_dim")
    for setting in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if values.get(setting) is not None:
            raise InputError(
                f"{folder.name} has a UNet with {setting}, an input of its own: give a model that reads text alone."
            )
    if (kind := values.get("addition_embed_type")) not in (None, "text_time"):
        raise InputError(
            f"{folder.name} has a UNet with addition_embed_type {shown(kind)}: give a model of SD1.5 or SDXL shape."
        )


def load_folder_encoder(
    folder: Path, index: Mapping[str, Any], suffix: str, sdxl: bool, choices: Choices
) -> TextEncoder:
    part = folder / f"text_encoder{suffix}"
    kind = index[part.name][1]
    if kind not in _ENCODERS:
        raise InputError(
            f"{folder.name} has a text encoder of the kind {short_name(kind)}: CLIPTextModel and "
            "CLIPTextModelWithProjection work."
        )
    values = read_json_object(part / "config.json")
    refuse_quantised_config(values, title_of(part))
    config = checked_text_config(values, place(part / "config.json"))
    model = build_text_encoder(config, load_part(part), _ENCODERS[kind], title_of(part), choices.dtype)
    given = choices.tokenizer
    words = folder / f"tokenizer{suffix}" if given is None else find_clip_vocabulary(given)
    pad_token = "!" if suffix and given is not None else None  # OpenCLIP's padding
    ready = load_tokenizer(
        words, max_length=config.max_position_embeddings, rows=config.vocab_size, pad_token=pad_token
    )
    key = "clip_g" if suffix else "clip_h" if config.hidden_size == 1024 else "clip_l"
    layer = -2 if sdxl else -1
    return TextEncoder(model, ready, layer, final_norm=not sdxl, pooled=bool(suffix), embedding_key=key)

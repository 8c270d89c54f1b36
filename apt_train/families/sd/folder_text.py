"""A text encoder of a diffusers folder, with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...disk.json_file import place, read_json_object, short_name
from ...errors import InputError
from ..components import TextEncoder
from .folder_index import title_of
from .ldm_text import build_text_encoder, checked_text_config
from .meta_build import refuse_quantised_config
from .tokenizer_files import find_clip_vocabulary, load_tokenizer
from .weight_files import load_part

_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def load_folder_encoder(
    folder: Path,
    index: Mapping[str, Any],
    suffix: str,
    sdxl: bool,
    tokenizer: str | Path | None,
    dtype: torch.dtype | None,
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
    model = build_text_encoder(config, load_part(part), _ENCODERS[kind], title_of(part), dtype)
    words = folder / f"tokenizer{suffix}" if tokenizer is None else find_clip_vocabulary(tokenizer)
    pad_token = "!" if suffix and tokenizer is not None else None  # OpenCLIP's padding
    ready = load_tokenizer(
        words, max_length=config.max_position_embeddings, rows=config.vocab_size, pad_token=pad_token
    )
    key = "clip_g" if suffix else "clip_h" if config.hidden_size == 1024 else "clip_l"
    if sdxl:
        return TextEncoder(model, ready, layer=-2, final_norm=False, pooled=bool(suffix), embedding_key=key)
    return TextEncoder(model, ready, embedding_key=key)

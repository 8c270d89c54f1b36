"""What is published about both families but absent from a file's tensors; and which family a UNet belongs to.

SD1.5's LoRA files name layers by diffusers' paths; SDXL's by those of sgm, the code SDXL was published with.

Not in: the layers' names (`layer_names`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..components import Family
from ..file_words import FileWords
from .layer_names import encoder_names, model_of, original_path, unet_names

FamilyName = Literal["sd15", "sdxl"]
_words = partial(FileWords, network_names=unet_names, encoder_names=encoder_names, model_of=model_of)
FILE_WORDS = {
    "sd15": _words("stable-diffusion-v1", "sd_v1"),
    "sd2": _words("stable-diffusion-v2-512", "sd_v2_base"),
    "sd2-768": _words("stable-diffusion-v2-768-v", "sd_v2_768_v"),
    "sdxl": _words("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "sgm", original_path),
    "custom": _words(),  # any other UNet2DConditionModel, such as the embedded model
}


@dataclass(frozen=True)
class EncoderSpec:
    """How a family's single files store one text encoder, and how its UNet reads it."""

    layout: Literal["transformers", "open_clip"]
    prefixes: list[str]  # the first one present in the file is used
    hidden_act: str
    layer: int
    final_norm: bool
    pooled: bool
    embedding_key: str
    pad_token: str


@dataclass(frozen=True)
class FamilySpec:
    """One `assets/families/*.json`: diffusers settings, to be completed from the tensors."""

    name: FamilyName
    source: str  # where the settings come from, for a reader of the file
    resolution: int  # pixels
    unet: dict[str, Any]
    attention_heads: int | None  # heads in every attention, or
    channels_per_head: int | None  # channels per head
    vae: dict[str, Any]
    text_encoders: tuple[EncoderSpec, ...]
    scheduler: dict[str, Any]

    def heads(self, channels: int) -> int:
        """The number of attention heads for this many channels (diffusers calls it `attention_head_dim`)."""
        return self.attention_heads or max(1, channels // (self.channels_per_head or 64))


def load_family(name: FamilyName) -> FamilySpec:
    path = Path(__file__).parents[2] / "assets" / "families" / f"{name}.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    encoders = tuple(EncoderSpec(**entry) for entry in values.pop("text_encoders"))
    return FamilySpec(**values, text_encoders=encoders)


def family_name(unet_config: Mapping[str, Any], num_encoders: int) -> str:
    """The family by shape: SDXL reads two encoders of 2048 channels in total plus size ids, SD1.5 one of 768.

    SD2 reads one of 1024, and comes for 512 or for 768 pixels.
    """
    shape = unet_config.get("addition_embed_type"), unet_config["cross_attention_dim"], num_encoders
    sd2 = "sd2-768" if unet_config.get("sample_size") == 96 else "sd2"
    return {("text_time", 2048, 2): "sdxl", (None, 768, 1): "sd15", (None, 1024, 1): sd2}.get(shape, "custom")


def family_of(unet_config: Mapping[str, Any], num_encoders: int, vae_factor: int) -> Family:
    """The kind of model that has such a UNet, so many text encoders and such a VAE."""
    name = family_name(unet_config, num_encoders)
    sample_size = unet_config.get("sample_size") or {"sdxl": 128}.get(name, 64)
    side = sample_size if isinstance(sample_size, int) else min(sample_size)
    return Family(name, side * vae_factor, vae_factor, FILE_WORDS[name])

"""Checks that UNet, text encoders and VAE belong to one model: each must read what the other produces."""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...errors import InputError
from ...wording import counted
from ..components import TextEncoder
from ..vae_codec import VaeCodec


def check_parts_fit(name: str, unet: UNet2DConditionModel, encoders: list[TextEncoder], codec: VaeCodec) -> None:
    """Refuse parts of different models. `name`: the checkpoint's, for the error."""
    sizes: list[Any] = [encoder.model.config for encoder in encoders]
    pairs = [
        ("text encoders of", sum(size.hidden_size for size in sizes), unet.config["cross_attention_dim"]),
        ("a VAE of", codec.latent_channels, unet.config["in_channels"]),
    ]
    if inputs := unet.config.get("projection_class_embeddings_input_dim"):
        pooled = sum(size.projection_dim for size, encoder in zip(sizes, encoders, strict=True) if encoder.pooled)
        pairs.append(("pooled text and size ids of", pooled + 6 * unet.config["addition_time_embed_dim"], inputs))
    for part, given, read in pairs:
        if given != read:
            raise InputError(
                f"{name} has {part} {counted(given, 'channel')} where its UNet reads {read}: its parts are of "
                "different models, so use another checkpoint."
            )
    if (predicted := unet.config["out_channels"]) != codec.latent_channels:
        raise InputError(
            f"{name} has a UNet that predicts {counted(predicted, 'channel')} for latents of "
            f"{codec.latent_channels}: give a model of SD1.5 or SDXL shape."
        )

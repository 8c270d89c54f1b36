"""A diffusers folder (model_index.json and one sub-folder per part) as `Components`; safetensors only."""

from __future__ import annotations

from pathlib import Path

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...errors import InputError
from ...wording import counted
from ..components import Choices, Components
from ..vae_codec import VaeCodec
from .folder_index import folder_schedule, is_given, read_index, title_of
from .folder_networks import checked_unet_config, load_folder_encoder, load_folder_unet
from .parts_fit import check_parts_fit
from .published import family_name, family_of
from .vae_source import vae_and_digest, vae_settings


def load_diffusers_folder(folder: Path, choices: Choices) -> Components:
    """See `load_checkpoint`."""
    index = read_index(folder, needs_vae=choices.vae is None)
    schedule = folder_schedule(folder, choices)
    unet_config = checked_unet_config(folder / "unet")
    if choices.vae is None:
        vae_settings(folder / "vae", title_of(folder / "vae"))  # refuses before anything is built
    sdxl = is_given(index, "text_encoder_2")
    encoders = [load_folder_encoder(folder, index, end, sdxl, choices) for end in (("", "_2") if sdxl else ("",))]
    unet = load_folder_unet(folder / "unet", unet_config, choices.dtype)
    autoencoder, digest = vae_and_digest(folder, choices.vae, family_name(unet.config, len(encoders)))
    codec = VaeCodec(autoencoder)
    _refuse_other_input(folder, unet, codec)
    check_parts_fit(folder.name, unet, encoders, codec)
    family = family_of(unet.config, len(encoders), codec.factor)
    return Components(
        unet, encoders, codec.encode, codec.decode, schedule, family,
        vae=autoencoder, digest=digest, source=folder.resolve().name,
    )  # fmt: skip


def _refuse_other_input(folder: Path, unet: UNet2DConditionModel, codec: VaeCodec) -> None:
    """Refuse UNets with more input than noisy latents."""
    found, latent = unet.config["in_channels"], codec.latent_channels
    kinds = {2 * latent + 1: "an inpainting model", 2 * latent: "a picture-editing model"}
    if found != latent:
        raise InputError(
            f"{folder.name} is {kinds.get(found, 'a model')} whose UNet takes {counted(found, 'channel')} where the "
            f"VAE gives {latent}: give the plain text-to-image model."
        )

"""A diffusers folder (model_index.json and one sub-folder per part) as `Components`; safetensors only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...disk.json_file import AGAIN, place, read_json_object, short_name, shown
from ...disk.tensor_file import sha256_of_files
from ...errors import InputError
from ..components import Components, TextEncoder
from ..noise import NoiseSchedule, PredictionType
from .config_check import checked
from .config_tables import INDEX, PARTS, TENSORS_PER_BLOCK, checked_scheduler, checked_unet, unet_blocks
from .ldm_text import build_text_encoder, checked_text_config
from .meta_build import build, refuse_quantised_config
from .parts_fit import check_parts_fit
from .published import family_of, load_family
from .schedule_config import schedule_from_config
from .tokenizer_files import find_clip_vocabulary, load_tokenizer
from .vae_codec import VaeCodec
from .vae_source import Vae, digest_with_vae, load_given_vae, load_vae_folder, vae_settings
from .weight_files import load_part, visible, weight_files

_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def load_diffusers_folder(
    folder: Path,
    *,
    tokenizer: str | Path | None,
    dtype: torch.dtype | None,
    prediction_type: PredictionType | None,
    vae: str | Path | None = None,
    zero_terminal_snr: bool | None = None,
) -> Components:
    """See `load_checkpoint`."""
    index = _read_index(folder, needs_vae=vae is None)
    schedule = _schedule(folder, prediction_type, zero_terminal_snr)
    unet_config = _unet_config(folder / "unet")
    if vae is None:
        vae_settings(folder / "vae", _what(folder / "vae"))  # refused before anything is built
    sdxl = _is_given(index, "text_encoder_2")
    encoders = [_text_encoder(folder, index, "", sdxl, tokenizer, dtype)]
    if sdxl:
        encoders.append(_text_encoder(folder, index, "_2", sdxl, tokenizer, dtype))
    unet = _load_unet(folder / "unet", unet_config, dtype)
    autoencoder, digest = _vae_and_digest(folder, vae, family_of(unet.config, len(encoders), 8).name)
    codec = VaeCodec(autoencoder)
    _refuse_other_input(folder, unet, codec)
    check_parts_fit(folder.name, unet, encoders, codec)
    family = family_of(unet.config, len(encoders), codec.factor)
    return Components(
        unet, encoders, codec.encode, codec.decode, schedule, family,
        vae=autoencoder, digest=digest, source=folder.resolve().name,
    )  # fmt: skip


def _read_index(folder: Path, needs_vae: bool) -> dict[str, Any]:
    """model_index.json, checked for the parts a Stable Diffusion pipeline has."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise InputError(
            f"The folder {folder} has no model_index.json, so it is no diffusers model: {_advice(folder)}."
        )
    index = checked(read_json_object(path), INDEX, place(path))
    optional = () if needs_vae else ("vae",)
    lacking = [part for part in PARTS if not (_is_given(index, part) or part in optional or part.endswith("_2"))]
    if lacking:
        title = short_name(index.get("_class_name", "pipeline"))
        raise InputError(f"{folder.name} is a {title} without {lacking[0]}: give a diffusers folder of SD1.5 or SDXL.")
    if (kind := index["unet"][1]) != "UNet2DConditionModel":
        raise InputError(
            f"{folder.name} has a UNet of the kind {short_name(kind)}: give a diffusers folder of SD1.5 or SDXL."
        )
    return index


def _advice(folder: Path) -> str:
    if (folder.parent / "model_index.json").is_file():
        return f"it is one part of a model, give {folder.parent}"
    files = visible(folder, "*.safetensors")
    return f"give a file in it, {files[0]} say" if files else "give a diffusers folder or a .safetensors checkpoint"


def _is_given(index: Mapping[str, Any], part: str) -> bool:
    return bool((index.get(part) or [None, None])[1])


def _schedule(folder: Path, prediction_type: PredictionType | None, zero_terminal_snr: bool | None) -> NoiseSchedule:
    path = folder / "scheduler" / "scheduler_config.json"
    config = checked_scheduler(read_json_object(path), place(path))
    if config.get("_class_name") == "LCMScheduler":
        raise _is_lcm(folder, "scheduler is an LCMScheduler")
    return schedule_from_config(config, prediction_type, zero_terminal_snr)


def _is_lcm(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} is an LCM (its {why}), a model distilled to few steps: give the model it was made from."
    )


def _what(part: Path) -> str:
    return f"The {part.name} in {part.parent.name}"


def _unet_config(part: Path) -> dict[str, Any]:
    values = read_json_object(part / "config.json")
    refuse_quantised_config(values, _what(part))
    _refuse_other_text(part.parent, values)
    return checked_unet(values, place(part / "config.json"))


def _load_unet(part: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> UNet2DConditionModel:
    tensors = load_part(part)
    if (blocks := unet_blocks(config)) * TENSORS_PER_BLOCK > len(tensors):
        raise InputError(
            f"{place(part / 'config.json')} describes {blocks} blocks, more than its {len(tensors)} tensors can be: "
            f"{AGAIN}."
        )
    return build(lambda: UNet2DConditionModel(**config), tensors, what=_what(part), dtype=dtype)


def _refuse_other_text(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse UNets that read more than timestep, text and SDXL's size ids."""
    if values.get("time_cond_proj_dim") is not None:
        raise _is_lcm(folder, "UNet has time_cond_proj_dim")
    for setting in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if values.get(setting) is not None:
            raise InputError(
                f"{folder.name} has a UNet with {setting}, an input of its own: give a model that reads text alone."
            )
    if (kind := values.get("addition_embed_type")) not in (None, "text_time"):
        raise InputError(
            f"{folder.name} has a UNet with addition_embed_type {shown(kind)}: give a model of SD1.5 or SDXL shape."
        )


def _refuse_other_input(folder: Path, unet: UNet2DConditionModel, codec: VaeCodec) -> None:
    """Refuse UNets that read more than noisy latents."""
    found, latent = unet.config["in_channels"], codec.latent_channels
    kinds = {2 * latent + 1: "an inpainting model", 2 * latent: "a picture-editing model"}
    if found != latent:
        raise InputError(
            f"{folder.name} is {kinds.get(found, 'a model')} whose UNet takes {found} channels where the VAE gives "
            f"{latent}: give the plain text-to-image model."
        )


def _vae_and_digest(folder: Path, given: str | Path | None, unet_family: str) -> tuple[Vae, str]:
    """The folder's VAE, or the given one; a file alone takes its scale from the UNet's family, or from the folder."""
    if given is None:
        return load_vae_folder(folder / "vae", _what(folder / "vae"), unet_family), _digest(folder, ("vae",))
    if unet_family in ("sd15", "sdxl"):
        settings = load_family(unet_family).vae
    else:
        settings = _own_vae_settings(folder / "vae")
    autoencoder, digest = load_given_vae(given, settings, unet_family)
    return autoencoder, digest_with_vae(_digest(folder, ()), digest)


def _own_vae_settings(part: Path) -> dict[str, Any]:
    kind, settings = vae_settings(part, _what(part)) if (part / "config.json").is_file() else ("", {})
    return settings if kind == "AutoencoderKL" else {}


def _text_encoder(
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
    refuse_quantised_config(values, _what(part))
    config = checked_text_config(values, place(part / "config.json"))
    model = build_text_encoder(config, load_part(part), _ENCODERS[kind], _what(part), dtype)
    words = folder / f"tokenizer{suffix}" if tokenizer is None else find_clip_vocabulary(tokenizer)
    pad_token = "!" if suffix and tokenizer is not None else None  # as OpenCLIP pads
    ready = load_tokenizer(
        words, max_length=config.max_position_embeddings, rows=config.vocab_size, pad_token=pad_token
    )
    key = "clip_g" if suffix else "clip_h" if config.hidden_size == 1024 else "clip_l"
    if sdxl:
        return TextEncoder(model, ready, layer=-2, final_norm=False, pooled=bool(suffix), embedding_key=key)
    return TextEncoder(model, ready, embedding_key=key)


def _digest(folder: Path, more_parts: tuple[str, ...]) -> str:
    """Over the weights used, their settings, the vocabularies and the schedule; of the VAE where it is used."""
    files = [folder / "model_index.json", *visible(folder, "scheduler/*.json"), *visible(folder, "tokenizer*/*.*")]
    for part in ("unet", "text_encoder", "text_encoder_2", *more_parts):
        if (folder / part).is_dir():
            files += [folder / part / "config.json", *weight_files(folder / part)]
    return sha256_of_files(folder, files)

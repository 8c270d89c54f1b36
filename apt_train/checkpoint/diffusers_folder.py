"""A diffusers folder (model_index.json and one sub-folder per part) as `Components`; safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from ..components import Components, TextEncoder
from ..errors import InputError
from ..noise import PredictionType
from .families import family_of
from .ldm_text import build_text_encoder
from .meta_build import Module, build
from .schedule_config import schedule_from_config
from .tensor_file import open_tensor_file, sha256_of_files
from .tokenizer_files import find_clip_vocabulary, load_tokenizer
from .vae_codec import VaeCodec

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def load_diffusers_folder(
    folder: Path,
    *,
    tokenizer: str | Path | None,
    dtype: torch.dtype | None,
    prediction_type: PredictionType | None,
) -> Components:
    """See `load_checkpoint`."""
    index = _read_index(folder)
    sdxl = _is_given(index, "text_encoder_2")
    encoders = [_text_encoder(folder, index, "", sdxl, tokenizer, dtype)]
    if sdxl:
        encoders.append(_text_encoder(folder, index, "_2", sdxl, tokenizer, dtype))
    unet = _load_unet(folder / "unet", dtype)
    vae = _load_vae(folder / "vae")
    codec = VaeCodec(vae)
    _check_fit(folder, unet, codec)
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    schedule = schedule_from_config(scheduler, prediction_type)
    family = family_of(unet.config, len(encoders), codec.factor)
    return Components(
        unet, encoders, codec.encode, codec.decode, schedule, family,
        vae=vae, digest=_digest(folder), source=folder.resolve().name,
    )  # fmt: skip


def _read_index(folder: Path) -> dict[str, Any]:
    """model_index.json, checked for the parts a Stable Diffusion pipeline has."""
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"The folder {folder} has no model_index.json, so it is no diffusers model: {_advice(folder)}."
        )
    index = _read_json(folder / "model_index.json")
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    lacking = [part for part in parts if not _is_given(index, part)]
    if lacking:
        title = index.get("_class_name", "pipeline")
        raise InputError(f"{folder.name} is a {title} without {lacking[0]}: give a diffusers folder of SD1.5 or SDXL.")
    if index["unet"][1] != "UNet2DConditionModel":
        raise InputError(
            f"{folder.name} has a UNet of the kind {index['unet'][1]}: give a diffusers folder of SD1.5 or SDXL."
        )
    return index


def _advice(folder: Path) -> str:
    if (folder.parent / "model_index.json").is_file():
        return f"it is one part of a model, give {folder.parent}"
    files = sorted(folder.glob("*.safetensors"))
    return f"give a file in it, {files[0]} say" if files else "give a diffusers folder or a .safetensors checkpoint"


def _is_given(index: dict[str, Any], part: str) -> bool:
    return bool((index.get(part) or [None, None])[1])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: the diffusers folder is incomplete, download or copy it again."
        ) from None
    except ValueError:
        raise InputError(f"{path} is no readable JSON: download or copy it again.") from None


def _weight_files(part: Path) -> list[Path]:
    """The part's safetensors, whole or in shards; a plain one before a variant such as `fp16`."""
    shards = sorted(part.glob("*model*-of-*.safetensors"))
    whole = sorted(
        set(part.glob("*model.*safetensors")) - set(shards),
        key=lambda path: (path.name.count("."), path.name),
    )
    if whole:
        return whole[:1]
    if shards:
        return [path for path in shards if path.name.split("-")[0] == shards[0].name.split("-")[0]]
    if pickles := [*part.glob("*.bin"), *part.glob("*.ckpt")]:
        raise InputError(
            f"{part.parent.name}/{part.name} holds {pickles[0].name} only, a pickle, which can run code when it is "
            "opened: get the model's .safetensors files instead."
        )
    raise InputError(f"{part} holds no .safetensors weights: the folder is incomplete, download or copy it again.")


def _load_tensors(part: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(part):
        file = open_tensor_file(path)
        tensors.update(file.load(file.shapes))
    return tensors


def _what(part: Path) -> str:
    return f"The {part.name} in {part.parent.name}"


def _load_unet(part: Path, dtype: torch.dtype | None) -> UNet2DConditionModel:
    config, kind = _read_json(part / "config.json"), UNet2DConditionModel
    return build(lambda: _from_config(kind, config), _load_tensors(part), what=_what(part), dtype=dtype)


def _from_config(kind: type[Module], config: dict[str, Any]) -> Module:
    """diffusers' own reading of a config.json: settings it does not know are left out, absent ones get its defaults."""
    make: Any = kind
    return make.from_config(config)


def _load_vae(part: Path) -> AutoencoderKL | AutoencoderTiny:
    """In float32: SDXL's published VAE overflows in float16."""
    config = _read_json(part / "config.json")
    kinds: dict[str, type[AutoencoderKL | AutoencoderTiny]] = {
        "AutoencoderKL": AutoencoderKL,
        "AutoencoderTiny": AutoencoderTiny,
    }
    name = config.get("_class_name", "AutoencoderKL")
    if name not in kinds:
        raise InputError(f"{part.parent.name} has a VAE of the kind {name}: only {' and '.join(kinds)} work.")
    if config.get("latents_mean") or config.get("latents_std"):
        raise InputError(
            f"{part.parent.name} has a VAE with latents_mean or latents_std, a scale that SD1.5 and SDXL do not have: "
            "give a model of their shape."
        )
    kind = kinds[name]
    tensors = {_new_attention_name(name): tensor for name, tensor in _load_tensors(part).items()}
    return build(lambda: _from_config(kind, config), tensors, what=_what(part), dtype=torch.float32)


def _new_attention_name(name: str) -> str:
    """Older files of the VAE name its attention layers otherwise."""
    stem, _, rest = name.rpartition(".attentions.0.")
    module, _, kind = rest.rpartition(".")
    return f"{stem}.attentions.0.{_OLD_ATTENTION[module]}.{kind}" if stem and module in _OLD_ATTENTION else name


def _text_encoder(
    folder: Path,
    index: dict[str, Any],
    suffix: str,
    sdxl: bool,
    tokenizer: str | Path | None,
    dtype: torch.dtype | None,
) -> TextEncoder:
    """One encoder as the UNet reads it.

    SD1.5-like models read the last layer behind the final norm; SDXL the last but one of both encoders as it is, and
    the pooled vector of the second.
    """
    part = folder / f"text_encoder{suffix}"
    kind = index[part.name][1]
    if kind not in _ENCODERS:
        raise InputError(
            f"{folder.name} has a text encoder of the kind {kind}: CLIPTextModel and CLIPTextModelWithProjection work."
        )
    config = CLIPTextConfig.from_dict(_read_json(part / "config.json"))
    model = build_text_encoder(config, _load_tensors(part), _ENCODERS[kind], _what(part), dtype)
    words = folder / f"tokenizer{suffix}" if tokenizer is None else find_clip_vocabulary(tokenizer)
    pad_token = "!" if suffix and tokenizer is not None else None  # as OpenCLIP pads
    ready = load_tokenizer(
        words, max_length=config.max_position_embeddings, rows=config.vocab_size, pad_token=pad_token
    )
    key = "clip_g" if suffix else "clip_h" if config.hidden_size == 1024 else "clip_l"
    if sdxl:
        return TextEncoder(model, ready, layer=-2, final_norm=False, pooled=bool(suffix), embedding_key=key)
    return TextEncoder(model, ready, embedding_key=key)


def _check_fit(folder: Path, unet: UNet2DConditionModel, codec: VaeCodec) -> None:
    """Refuse UNets that read more than noisy latents, text and SDXL's size ids."""
    found, latent = unet.config["in_channels"], codec.latent_channels
    kinds = {2 * latent + 1: "an inpainting model", 2 * latent: "a picture-editing model"}
    if found != latent:
        raise InputError(
            f"{folder.name} is {kinds.get(found, 'a model')} whose UNet takes {found} channels where the VAE gives "
            f"{latent}: give the plain text-to-image model."
        )
    for setting in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.config.get(setting) is not None:
            raise InputError(
                f"{folder.name} has a UNet with {setting}, an input of its own: give a model that reads text alone."
            )
    if unet.config.get("addition_embed_type") not in (None, "text_time"):
        kind = unet.config["addition_embed_type"]
        raise InputError(
            f"{folder.name} has a UNet with addition_embed_type {kind}: give a model of SD1.5 or SDXL shape."
        )


def _digest(folder: Path) -> str:
    """Over the weights used, their settings, the vocabularies and the schedule."""
    files = [folder / "model_index.json", *folder.glob("scheduler/*.json"), *folder.glob("tokenizer*/*.*")]
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (folder / part).is_dir():
            files += [folder / part / "config.json", *_weight_files(folder / part)]
    return sha256_of_files(folder, files)

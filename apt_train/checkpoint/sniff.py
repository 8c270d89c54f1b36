"""Which model a safetensors file holds, from its tensors' names; whatever cannot be trained is refused by its name."""

from __future__ import annotations

import re
from typing import Literal

from ..errors import InputError
from .ldm_unet import context_dim
from .tensor_file import TensorFile

UNET = "model.diffusion_model."
WANTED = "a full SD1.5 or SDXL checkpoint (.safetensors) or a diffusers folder"

_LORA = re.compile(
    r"(^lora_(unet|te\d?)_|[._]lora[._](up|down|A|B|mid)\b|\.(hada_w1_a|lokr_w1|oft_blocks|dora_scale|diff_b)$)"
)
_OTHERS = (  # what it is, and a pattern that some of its names match; the first hit counts
    ("a LoRA", _LORA),
    ("a ControlNet", re.compile(r"^(control_model|controlnet_cond_embedding|input_hint_block|zero_convs)\.")),
    ("a textual inversion embedding", re.compile(r"^(clip_l|clip_g|emb_params)$")),
    ("an IP-Adapter", re.compile(r"^(ip_adapter|image_proj)\.")),
    ("a FLUX model (or a relative)", re.compile(r"(^|\.)(double_blocks\.0|single_transformer_blocks\.0)\.")),
    ("an SD3 model", re.compile(r"(^|\.)joint_blocks\.0\.|^transformer_blocks\.0\.attn\.add_q_proj\.")),
    ("a video model", re.compile(r"\.(time_stack|temporal_transformer|motion_modules)\.")),
)
_PARTS = (  # parts of a checkpoint given alone: tried where there is no whole one
    ("a UNet alone", re.compile(r"^(model\.diffusion_model\.)?(input_blocks|down_blocks)\.\d")),
    (
        "a VAE alone",
        re.compile(r"^(first_stage_model\.|vae\.)?(taesd_)?(encoder|decoder)\.(conv_in|down|up|mid|layers|\d+)"),
    ),
    ("a text encoder alone", re.compile(r"(^|\.)(text_model\.)?encoder\.(layers|block)\.0\.|resblocks\.0\.")),
)


def require_checkpoint(file: TensorFile) -> Literal["sd15", "sdxl"]:
    """The family whose layout the file has. InputError naming what it is instead, or what it lacks."""
    _refuse_others(file)
    if f"{UNET}input_blocks.0.0.weight" not in file:
        raise InputError(f"{file.path.name} is {_part_or_unknown(file)}: give {WANTED}.")
    _refuse_variants(file)
    family: Literal["sd15", "sdxl"] = "sdxl" if f"{UNET}label_emb.0.0.weight" in file else "sd15"
    if not (file.has_prefix("cond_stage_model.") or file.has_prefix("conditioner.")):
        part = "a UNet alone" if not file.has_prefix("first_stage_model.") else "a checkpoint without text encoder"
        raise InputError(f"{file.path.name} is {part}: give {WANTED}.")
    return family


def _refuse_others(file: TensorFile) -> None:
    for title, pattern in _OTHERS:
        if any(pattern.search(name) for name in file.shapes):
            raise InputError(f"{file.path.name} is {title}, no checkpoint to train on: give {WANTED}.")


def _part_or_unknown(file: TensorFile) -> str:
    if not file.shapes:
        return "a file without any tensor"
    if file.has_prefix(UNET):
        return "a diffusion model of another architecture than SD1.5 or SDXL"
    for title, pattern in _PARTS:
        if any(pattern.match(name) for name in file.shapes):
            return title
    return f"no model known here (its first tensor is {next(iter(file.shapes))})"


def _refuse_variants(file: TensorFile) -> None:
    """Relatives of SD1.5 and SDXL that have their layout, but another input, context or noise."""
    shapes = file.under(UNET)
    found = None
    channels = shapes["input_blocks.0.0.weight"][1]
    if channels != 4:
        kinds = {
            9: "an inpainting UNet",
            8: "a picture-editing UNet (InstructPix2Pix)",
            7: "an upscaler's UNet",
        }
        found = f"{kinds.get(channels, 'a UNet')} of {channels} input channels instead of 4"
    elif (context := context_dim(shapes)) is None:
        found = "a UNet without cross-attention"
    elif context == 1280:
        found = "the SDXL refiner, which reads another text embedding"
    elif context == 1024:
        found = "an SD2.x checkpoint, which is supported as a diffusers folder only"
    elif "edm_mean" in file or "edm_vpred.sigma_max" in file:
        found = "a model of the EDM noise schedule (Playground v2.5, say)"
    if found:
        raise InputError(f"{file.path.name} is {found}: give {WANTED}.")

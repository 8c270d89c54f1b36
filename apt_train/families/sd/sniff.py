"""Identifies the model in a safetensors file by its tensor names; refuses what cannot be trained, naming it."""

from __future__ import annotations

import math
import re

from ...disk.json_file import short_name
from ...disk.tensor_file import TensorFile, size_of
from ...errors import InputError
from ...wording import listed
from .ldm_unet import context_dim
from .published import FamilyName

UNET = "model.diffusion_model."
FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
WANTED = "a full SD1.5 or SDXL checkpoint (.safetensors) or a diffusers folder"

TITLES = {"sd15": "SD1.5", "sdxl": "SDXL"}
_BY_SCALE: dict[float, FamilyName] = {0.18215: "sd15", 0.13025: "sdxl"}  # published with each family's VAE
# SD2.x uses SD1.5's VAE, the refiner SDXL's
_BY_CONTEXT: dict[int | None, FamilyName] = {768: "sd15", 1024: "sd15", 2048: "sdxl", 1280: "sdxl"}
_LORA = re.compile(
    r"(^lora_(unet|te\d?)_|[._]lora[._](up|down|A|B|mid)\b|\.(hada_w1_a|lokr_w1|oft_blocks|dora_scale|diff_b)$)"
)
_OTHERS = (  # what it is, and a pattern that many of its tensors match; the first hit counts
    ("a LoRA", _LORA),
    ("a ControlNet", re.compile(r"^(control_model|controlnet_cond_embedding|input_hint_block|zero_convs)\.")),
    ("a textual inversion embedding", re.compile(r"^(clip_l|clip_g|emb_params)$")),
    ("an IP-Adapter", re.compile(r"^(ip_adapter|image_proj)\.")),
)
_LEAD = r"^((model|diffusion_model|unet|net)\.)*"
_OTHER_NETWORKS = (  # likewise, but a few matches suffice: they are blocks of the network itself
    ("a FLUX model (or a relative)", re.compile(r"(^|\.)(double_blocks\.0|single_transformer_blocks\.0)\.")),
    ("a Qwen-Image model", re.compile(r"(^|\.)transformer_blocks\.0\.img_mlp\.")),
    (
        "an SD3 model (or a relative)",
        re.compile(r"(^|\.)joint_blocks\.0\.|" + _LEAD + r"transformer_blocks\.0\.attn\.add_q_proj\."),
    ),
    ("a Wan model", re.compile(r"(^|\.)blocks\.0\.self_attn\.q\.")),
    ("a video model", re.compile(r"\.(time_stack|temporal_transformer|motion_modules)\.")),
    (
        "a diffusion transformer (PixArt, Lumina or a relative)",
        re.compile(_LEAD + r"((double_|transformer_)?(blocks|layers)|double_stream_blocks)\.0\.(attn|attention|block)"),
    ),
)
STRAY = 0.02  # share of a file's names too small to identify it; in a full checkpoint, half
_PARTS = (  # single parts of a checkpoint: tried if it is not complete
    ("a UNet", re.compile(_LEAD + r"(input_blocks|down_blocks)\.\d")),
    (
        "a VAE",
        re.compile(
            r"^(first_stage_model\.|vae\.)?(taesd_)?(encoder|decoder)"
            r"\.(conv_in|down|up|mid|layers\.\d+\.(weight|conv)|\d+)"
        ),
    ),
    (
        "a text encoder",
        re.compile(r"^(?!vision)(.*\.)?((encoder|model)\.(layers|block)\.0\.(self_attn|mlp|layer)|resblocks\.0\.)"),
    ),
)


def require_checkpoint(file: TensorFile, needs_vae: bool) -> FamilyName:
    """The family whose layout the file has. InputError says what it is instead, or what it lacks."""
    _refuse_others(file)
    if FIRST_CONVOLUTION not in file:
        raise InputError(f"{file.path.name} is {_part_or_unknown(file)}: give {WANTED}.")
    _refuse_variants(file)
    if not (file.has_prefix("cond_stage_model.") or file.has_prefix("conditioner.")):
        bare = needs_vae and not file.has_prefix("first_stage_model.")
        part = "a UNet alone" if bare else "a checkpoint without text encoder"
        raise InputError(f"{file.path.name} is {part}: give {WANTED}.")
    return _by_layout(file)


def _by_layout(file: TensorFile) -> FamilyName:
    return "sdxl" if f"{UNET}label_emb.0.0.weight" in file else "sd15"


def _refuse_others(file: TensorFile) -> None:
    """Refuse other kinds of files, judged by most of their names: a few stray ones do not make a file a LoRA."""
    names, full = list(file.shapes), FIRST_CONVOLUTION in file
    blocks = [name for name in names if name.startswith(UNET)] if full else names
    least = (0.5 if full else STRAY) * len(names)
    found = [title for title, pattern in _OTHERS if sum(bool(pattern.search(name)) for name in names) > least]
    found += [title for title, pattern in _OTHER_NETWORKS if any(pattern.search(name) for name in blocks)]
    if found:
        raise InputError(f"{file.path.name} is {found[0]}, no checkpoint to train on: give {WANTED}.")


def _part_or_unknown(file: TensorFile) -> str:
    if not file.shapes:
        return "a file without any tensor"
    if file.has_prefix(UNET):
        return "a diffusion model of another architecture than SD1.5 or SDXL"
    found = [title for title, pattern in _PARTS if any(pattern.match(name) for name in file.shapes)]
    if found:
        return f"{found[0]} alone" if len(found) == 1 else f"{listed(found)} in an unknown layout"
    return f"no model known here (its first tensor is {short_name(next(iter(file.shapes)))})"


def _refuse_variants(file: TensorFile) -> None:
    """Refuse relatives of SD1.5 and SDXL with the same layout, but different input, context or noise."""
    shapes = file.under(UNET)
    found = None
    channels = size_of(shapes, "input_blocks.0.0.weight", 1, f"The UNet in {file.path.name}")
    if channels != 4:
        kinds = {9: "an inpainting UNet", 8: "a picture-editing UNet (InstructPix2Pix)", 7: "an upscaler's UNet"}
        found = f"{kinds.get(channels, 'a UNet')} of {channels} input channels instead of 4"
    elif (context := context_dim(shapes)) is None:
        found = "a UNet without cross-attention"
    elif context == 1280:
        found = "the SDXL refiner, which reads another text embedding"
    elif context == 1024:
        found = "an SD2.x checkpoint, which is supported as a diffusers folder only"
    elif "edm_mean" in file or "edm_vpred.sigma_max" in file:
        found = "a model of the EDM noise schedule (Playground v2.5, say)"
    elif any(name.startswith("time_embed.cond_proj.") for name in shapes):
        found = "an LCM, a model distilled to few steps that reads the guidance as an input"
    if found:
        raise InputError(f"{file.path.name} is {found}: give {WANTED}.")


def family_of_scale(scale: float, tolerance: float = 0.0) -> FamilyName | None:
    """The family whose VAE has this latent scale; None: neither's. `tolerance`: relative, for one that was rounded."""
    return next((family for known, family in _BY_SCALE.items() if math.isclose(scale, known, rel_tol=tolerance)), None)


def family_of_vae(file: TensorFile) -> FamilyName | None:
    """The family that a VAE's file claims by the UNet it also holds, or by its metadata; None: it does not say."""
    context = context_dim({name: shape for name, shape in file.under(UNET).items() if len(shape) > 1})
    if context in _BY_CONTEXT:
        return _BY_CONTEXT[context]
    if FIRST_CONVOLUTION in file:
        return _by_layout(file)
    said = " ".join(file.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    if "stable-diffusion-xl" in said or "sdxl" in said:
        return "sdxl"
    return "sd15" if re.search(r"stable-diffusion-v[12]\b|\bsd_v[12]", said) else None


def refuse_other_family(vae: FamilyName | None, unet: str, what: str) -> None:
    """InputError for a VAE that claims to be SD1.5's beside an SDXL UNet, or the other way round."""
    reads = "sd15" if unet.startswith("sd2") else unet
    if vae is not None and reads in TITLES and vae != reads:
        raise InputError(
            f"{what} is one of {TITLES[vae]}, but the UNet reads the latents of {TITLES[reads]}: give the VAE of "
            f"{TITLES[reads]}."
        )

"""A diffusers folder's VAE, or a replacement from a file or folder; whether it suits the UNet; the digest with it.

A VAE of the other family would train without an error and learn nothing useful: both have 4 channels, but different
latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from ...disk.json_file import place, read_json_object, shown
from ...disk.tensor_file import open_tensor_file, sha256_of_file, sha256_of_files
from ...errors import InputError
from ..reading.meta_build import build, refuse_quantised_config
from ..reading.weight_files import load_part, visible, weight_files
from .config_tables import KL_VAE, TINY_VAE, checked_vae
from .folder_index import title_of
from .ldm_vae import PREFIX, new_attention_name, vae_from_tensors
from .published import load_family
from .sniff import family_of_scale, family_of_vae, refuse_other_family

Vae: TypeAlias = AutoencoderKL | AutoencoderTiny
_DEFAULT_SCALE = 0.18215  # SD1.5's, but also diffusers' default in any config.json. In a model's own folder it
_PUBLISHED_WIDTHS = (128, 256, 512, 512)  # therefore identifies only a VAE of the published widths.
_KINDS = ("AutoencoderKL", "AutoencoderTiny")


def load_given_vae(path: str | Path, settings: Mapping[str, Any], unet_family: str) -> tuple[Vae, str]:
    """The VAE at `path` in float32, and the digest of its content.

    Args:
        path: A `.safetensors` that is or contains a VAE (a full checkpoint), a diffusers `vae` folder, or a model's
            folder with a `vae` in it.
        settings: The VAE settings of the model it is for; used for a bare file, which does not contain them.
        unet_family: `sd15`, `sdxl`, or any other name, which accepts every VAE.

    Raises:
        InputError: There is none, it is damaged, or it claims to be of the other family.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"The VAE {path} does not exist: check the path.")
    if path.is_dir():
        part = path / "vae" if (path / "vae" / "config.json").is_file() else path
        vae = load_vae_folder(part, f"The VAE in {path.name}", unet_family, given=True)
        return vae, sha256_of_files(part, [part / "config.json", *weight_files(part)])
    file = open_tensor_file(path)
    what = f"The VAE in {path.name}"
    refuse_other_family(family_of_vae(file), unet_family, what)
    prefix = next((prefix for prefix in (PREFIX, "vae.") if file.has_prefix(prefix)), "")
    return vae_from_tensors(file.load_under(prefix), settings, what), sha256_of_file(path)


def digest_with_vae(checkpoint: str, vae: str) -> str:
    """The digest of a checkpoint used with a VAE that is not its own."""
    return hashlib.sha256(f"{checkpoint} vae {vae}".encode()).hexdigest()


def vae_settings(part: Path, what: str) -> tuple[str, dict[str, Any]]:
    """The class named in a diffusers `vae` folder's config.json, and its checked settings."""
    values = read_json_object(part / "config.json")
    refuse_quantised_config(values, what)
    kind = values.get("_class_name", "AutoencoderKL")
    if kind not in _KINDS:
        raise InputError(f"{what} is of the kind {shown(kind)}: only {' and '.join(_KINDS)} work.")
    if values.get("latents_mean") or values.get("latents_std"):
        raise InputError(
            f"{what} has latents_mean or latents_std, a scale that SD1.5 and SDXL do not have: give a model of their "
            "shape."
        )
    return kind, checked_vae(values, KL_VAE if kind == "AutoencoderKL" else TINY_VAE, place(part / "config.json"))


def load_vae_folder(part: Path, what: str, unet_family: str, given: bool = False) -> Vae:
    """A VAE in float32, because SDXL's published one overflows in float16. `given`: it is not the model's own."""
    kind, config = vae_settings(part, what)
    make = AutoencoderKL if kind == "AutoencoderKL" else AutoencoderTiny
    scale = config.get("scaling_factor", _DEFAULT_SCALE if make is AutoencoderKL else None)
    says = scale != _DEFAULT_SCALE or given or config.get("block_out_channels") == _PUBLISHED_WIDTHS
    refuse_other_family(family_of_scale(scale) if scale and says else None, unet_family, what)
    tensors = {new_attention_name(name): tensor for name, tensor in load_part(part).items()}
    return build(lambda: make(**config), tensors, what=what, dtype=torch.float32)


def vae_and_digest(folder: Path, given: str | Path | None, unet_family: str) -> tuple[Vae, str]:
    """The folder's VAE, or the given one. A bare file takes its latent scale from the UNet's family or the folder."""
    if given is None:
        return load_vae_folder(folder / "vae", title_of(folder / "vae"), unet_family), _digest(folder, ("vae",))
    settings = load_family(unet_family).vae if unet_family in ("sd15", "sdxl") else _own_vae_settings(folder / "vae")
    autoencoder, digest = load_given_vae(given, settings, unet_family)
    return autoencoder, digest_with_vae(_digest(folder, ()), digest)


def _own_vae_settings(part: Path) -> dict[str, Any]:
    kind, settings = vae_settings(part, title_of(part)) if (part / "config.json").is_file() else ("", {})
    return settings if kind == "AutoencoderKL" else {}


def _digest(folder: Path, more_parts: tuple[str, ...]) -> str:
    """Digest of the weights in use, their settings, the vocabularies, the schedule, and the VAE if it is used."""
    files = [folder / "model_index.json", *visible(folder, "scheduler/*.json"), *visible(folder, "tokenizer*/*.*")]
    for part in ("unet", "text_encoder", "text_encoder_2", *more_parts):
        if (folder / part).is_dir():
            files += [folder / part / "config.json", *weight_files(folder / part)]
    return sha256_of_files(folder, files)

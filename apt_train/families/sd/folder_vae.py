"""The VAE of a diffusers folder, or a replacement; and the digest of everything in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...disk.tensor_file import sha256_of_files
from .folder_index import title_of
from .published import load_family
from .vae_source import Vae, digest_with_vae, load_given_vae, load_vae_folder, vae_settings
from .weight_files import visible, weight_files


def check_own_vae(folder: Path) -> None:
    """InputError if the folder's own VAE cannot be used. Checked before anything is built."""
    vae_settings(folder / "vae", title_of(folder / "vae"))


def vae_and_digest(folder: Path, given: str | Path | None, unet_family: str) -> tuple[Vae, str]:
    """The folder's VAE, or the given one. A bare file takes its latent scale from the UNet's family or the folder."""
    if given is None:
        return load_vae_folder(folder / "vae", title_of(folder / "vae"), unet_family), _digest(folder, ("vae",))
    if unet_family in ("sd15", "sdxl"):
        settings = load_family(unet_family).vae
    else:
        settings = _own_vae_settings(folder / "vae")
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

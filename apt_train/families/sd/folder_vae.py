"""The VAE of a diffusers folder, or the one given in its place; and the digest of all that is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...disk.tensor_file import sha256_of_files
from .folder_index import title_of
from .published import load_family
from .vae_source import Vae, digest_with_vae, load_given_vae, load_vae_folder, vae_settings
from .weight_files import visible, weight_files


def check_own_vae(folder: Path) -> None:
    """Refused before anything is built. InputError: the folder's own VAE cannot be used."""
    vae_settings(folder / "vae", title_of(folder / "vae"))


def vae_and_digest(folder: Path, given: str | Path | None, unet_family: str) -> tuple[Vae, str]:
    """The folder's VAE, or the given one; a file alone takes its scale from the UNet's family, or from the folder."""
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
    """Over the weights used, their settings, the vocabularies and the schedule; of the VAE where it is used."""
    files = [folder / "model_index.json", *visible(folder, "scheduler/*.json"), *visible(folder, "tokenizer*/*.*")]
    for part in ("unet", "text_encoder", "text_encoder_2", *more_parts):
        if (folder / part).is_dir():
            files += [folder / part / "config.json", *weight_files(folder / part)]
    return sha256_of_files(folder, files)

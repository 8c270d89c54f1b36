"""Which family's latents a VAE makes: SD1.5's and SDXL's have the same shape, but another scale and meaning.

In: the evidence: the tiny autoencoder's own scale, or the file it was loaded from. Not in: pictures (`vae`). Without
evidence a VAE is accepted: no refusal may rest on a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...apt_train.disk.tensor_file import TensorFile, open_tensor_file
from ...apt_train.errors import InputError
from ...apt_train.families.sd.ldm_unet import context_dim

_UNET = "model.diffusion_model."
_BY_SCALE = {0.18215: "SD1.5", 0.13025: "SDXL"}  # published with each family's VAE
_BY_CONTEXT = {768: "SD1.5", 1024: "SD1.5", 2048: "SDXL", 1280: "SDXL"}  # SD2.x uses SD1.5's VAE, the refiner SDXL's
_BY_ARCHITECTURE = {"stable-diffusion-v1": "SD1.5", "stable-diffusion-v2": "SD1.5", "stable-diffusion-xl": "SDXL"}


def require_vae_of(model: Any, vae: Any) -> None:
    """InputError: the VAE is known to be for the other family. Accepts one whose family is unknown."""
    wanted = _by_scale(model.model.latent_format.scale_factor)
    found, file = _family_and_file(vae)
    if wanted is None or found is None or wanted == found:
        return
    where = f" (from {file})" if file else ""
    raise InputError(
        f"The VAE is one of {found}{where}, but the MODEL is one of {wanted}: wire the VAE of the same checkpoint."
    )


def _family_and_file(vae: Any) -> tuple[str | None, str]:
    path = _loaded_from(vae)
    own = getattr(vae.first_stage_model, "vae_scale", None)  # set by the tiny autoencoder
    found = None if own is None else _by_scale(float(own))
    if found is None and path is not None:
        found = _family_of_file(path)
    return found, path.name if path is not None else ""


def _by_scale(scale: float) -> str | None:
    return next((family for known, family in _BY_SCALE.items() if abs(scale / known - 1) < 0.01), None)


def _loaded_from(vae: Any) -> Path | None:
    """The file the host would reload it from, if its loader recorded that."""
    made_by = getattr(getattr(vae, "patcher", None), "cached_patcher_init", None)
    path = made_by[1][0] if made_by and made_by[1] else None
    return Path(path) if isinstance(path, str) else None


def _family_of_file(path: Path) -> str | None:
    """Judged by the UNet in the same file, otherwise by a VAE file's own metadata."""
    try:
        file = open_tensor_file(path)
    except (InputError, OSError):
        return None
    context = context_dim(file.under(_UNET))
    return _BY_CONTEXT.get(context) if context is not None else _by_metadata(file)


def _by_metadata(file: TensorFile) -> str | None:
    said: Mapping[str, Any] = file.metadata
    architecture = str(said.get("modelspec.architecture", ""))
    return next((family for start, family in _BY_ARCHITECTURE.items() if architecture.startswith(start)), None)

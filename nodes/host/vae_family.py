"""Whether a VAE makes the latents that a MODEL reads: SD1.5's and SDXL's have one shape, but another scale and meaning.

In: the evidence: the channels, the tiny autoencoder's own scale, or the file it was loaded from. Not in: pictures
(`vae`). Without evidence a VAE is accepted: no refusal may rest on a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...apt_train.disk.tensor_file import open_tensor_file
from ...apt_train.errors import InputError
from ...apt_train.families.sd.published import FamilyName
from ...apt_train.families.sd.sniff import TITLES, family_of_scale, family_of_vae

_ROUNDED = 0.01  # relative: the host may keep a scale in half precision


def require_channels_of(model: Any, vae: Any) -> None:
    """InputError: the VAE's latents have another number of channels than the MODEL reads, or are a video's."""
    reads = model.model.latent_format.latent_channels
    if vae.latent_channels != reads or vae.latent_dim != 2:
        raise InputError(
            f"The VAE makes latents of {vae.latent_channels} channels, the model reads {reads}: wire the VAE of the "
            "same checkpoint."
        )


def require_vae_of(model: Any, vae: Any) -> None:
    """InputError: the VAE is known to be for the other family. Accepts one whose family is unknown."""
    wanted = family_of_scale(model.model.latent_format.scale_factor, _ROUNDED)
    file = loaded_from(getattr(vae, "patcher", None))
    found = _family_of(vae, file)
    if wanted is None or found is None or wanted == found:
        return
    where = f" (from {file.name})" if file else ""
    raise InputError(
        f"The VAE is one of {TITLES[found]}{where}, but the MODEL is one of {TITLES[wanted]}: wire the VAE of the same "
        "checkpoint."
    )


def loaded_from(patcher: Any) -> Path | None:
    """The file the host would reload a model or a VAE from, if its loader recorded that."""
    made_by = getattr(patcher, "cached_patcher_init", None)
    path = made_by[1][0] if made_by and made_by[1] else None
    return Path(path) if isinstance(path, str) else None


def _family_of(vae: Any, file: Path | None) -> FamilyName | None:
    own = getattr(vae.first_stage_model, "vae_scale", None)  # set by the tiny autoencoder
    found = None if own is None else family_of_scale(float(own.detach()), _ROUNDED)
    try:
        return family_of_vae(open_tensor_file(file)) if found is None and file is not None else found
    except (InputError, OSError):
        return None

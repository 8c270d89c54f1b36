"""The one entry to checkpoints: a single file or a diffusers folder becomes `Components`.

Ready modules need no loading: build `Components` from them. Nothing here opens a pickle or the network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ...errors import InputError
from ...paths import expanded, one_line
from ..components import Components
from ..noise import PredictionType
from .diffusers_folder import load_diffusers_folder
from .single_file import load_single_file


def load_checkpoint(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: PredictionType | None = None,
    vae: str | Path | None = None,
    zero_terminal_snr: bool | None = None,
) -> Components:
    """A model on the CPU, in eval mode, nothing requiring a gradient.

    The weights are views of the mapped file wherever its type is kept: do not overwrite the file while they are used.

    Args:
        path: A diffusers folder (with model_index.json; SD1.5-, SDXL- or otherwise shaped), or a single
            `.safetensors` of SD1.5 or SDXL with UNet, text encoders and VAE.
        tokenizer: A folder with CLIP's vocab.json and merges.txt, or a tokenizer.json, or a folder holding such a
            `tokenizer` (and `tokenizer_2`). None: a diffusers folder's own; for a single file, ComfyUI's at
            $COMFYUI_PATH, else the local Hugging Face cache's.
        dtype: Of the UNet and the text encoders; None: the one the file has. The VAE is float32 in any case
            (SDXL's overflows in float16), and so are all latents.
        prediction_type: What the UNet predicts, where the file tells nothing or the wrong thing; None: what it tells.
        vae: A VAE to use in the place of the model's own: a `.safetensors` that is one or holds one, or a diffusers
            `vae` folder. None: the model's own.
        zero_terminal_snr: Whether the noise schedule ends in pure noise, for a v-prediction model whose file does not
            say so; None: what it tells.

    Raises:
        InputError: Whatever cannot be trained, naming what was found and what works.
    """
    path = expanded(path, "The checkpoint")
    if not path.exists():
        raise InputError(f"The checkpoint {path} does not exist: check the path.")
    load = load_diffusers_folder if path.is_dir() else load_single_file
    try:
        components = load(
            path,
            tokenizer=tokenizer,
            dtype=dtype,
            prediction_type=prediction_type,
            vae=vae,
            zero_terminal_snr=zero_terminal_snr,
        )
    except OSError as error:
        raise InputError(
            f"The checkpoint {path} cannot be read ({error}): check the file and its permissions."
        ) from None
    components.source = one_line(components.source)  # it goes into files that take no bytes without a letter
    if dtype is not None:  # rounded weights are another model
        components.digest = hashlib.sha256(f"{components.digest} {dtype}".encode()).hexdigest()
    return components

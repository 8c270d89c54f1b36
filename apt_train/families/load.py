"""The entry point for checkpoints: a single file or a diffusers folder becomes `Components`.

If the modules are already loaded, build `Components` directly. Nothing here opens a pickle or the network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ..errors import InputError
from ..paths import expanded, one_line
from ..torch_defaults import torch_defaults
from .components import Choices, Components
from .noise import PredictionType
from .sd.diffusers_folder import load_diffusers_folder
from .sd.single_file import load_single_file


@torch_defaults()
def load_checkpoint(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: PredictionType | None = None,
    vae: str | Path | None = None,
    zero_terminal_snr: bool | None = None,
) -> Components:
    """Load a model onto the CPU, in eval mode, with gradients disabled.

    The weights are views of the mapped file if their dtype is kept: do not overwrite the file while they are in use.

    Args:
        path: A diffusers folder (with model_index.json; SD1.5-, SDXL- or otherwise shaped), or a single
            `.safetensors` of SD1.5 or SDXL with UNet, text encoders and VAE.
        tokenizer: A folder with CLIP's vocab.json and merges.txt, or a tokenizer.json, or a folder holding such a
            `tokenizer` (and `tokenizer_2`). None: a diffusers folder's own; for a single file, ComfyUI's at
            $COMFYUI_PATH, otherwise that of the local Hugging Face cache.
        dtype: For the UNet and the text encoders; None: as in the file. The VAE is always float32 (SDXL's overflows
            in float16), and so are all latents.
        prediction_type: What the UNet predicts, if the file does not say or is wrong; None: as the file says.
        vae: A VAE to use instead of the model's own: a `.safetensors` that is or contains one, or a diffusers `vae`
            folder. None: the model's own.
        zero_terminal_snr: Whether the noise schedule ends in pure noise, for a v-prediction model whose file does not
            say so; None: as the file says.

    Raises:
        InputError: Anything that cannot be trained, naming what was found and what works.
    """
    path = expanded(path, "The checkpoint")
    if not path.exists():
        raise InputError(f"The checkpoint {path} does not exist: check the path, as nothing is downloaded.")
    known: object = dtype
    if dtype is not None and not (isinstance(known, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise InputError(f"dtype is {dtype}: give torch.float32, torch.bfloat16 or torch.float16.")
    load = load_diffusers_folder if path.is_dir() else load_single_file
    given_vae = None if vae is None else expanded(vae, "The VAE")
    try:
        components = load(path, Choices(tokenizer, dtype, prediction_type, given_vae, zero_terminal_snr))
    except OSError as error:
        raise InputError(
            f"The checkpoint {path} cannot be read ({error}): check the file and its permissions."
        ) from None
    components.source = one_line(components.source)  # it is written to files that cannot hold undecodable bytes
    if dtype is not None:  # rounded weights are a different model
        components.digest = hashlib.sha256(f"{components.digest} {dtype}".encode()).hexdigest()
    return components

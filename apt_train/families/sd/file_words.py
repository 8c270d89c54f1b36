"""How LoRA files of Stable Diffusion describe the model.

SD1.5's files name layers by diffusers' paths; SDXL's by those of sgm, the code SDXL was published with. Not in: the
layers' names (`layer_names`).
"""

from __future__ import annotations

from functools import partial

from ..file_words import FileWords
from .layer_names import encoder_names, model_of, sgm_path, unet_names

_words = partial(FileWords, network_names=unet_names, encoder_names=encoder_names, model_of=model_of)
FILE_WORDS = {
    "sd15": _words("stable-diffusion-v1", "sd_v1"),
    "sdxl": _words("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "sgm", sgm_path),
    "custom": _words(),  # any other UNet2DConditionModel, such as the embedded model
}

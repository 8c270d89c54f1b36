"""A single `.safetensors` checkpoint of SD1.5 or SDXL, in the original Stable Diffusion layout, as `Components`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ...disk.tensor_file import TensorFile, open_tensor_file, sha256_of_file
from ..components import Choices, Components, TextEncoder
from ..noise import NoiseSchedule
from ..reading.meta_build import build
from ..reading.tokenizer_files import find_clip_vocabulary, load_tokenizer
from ..vae_codec import VaeCodec
from .ldm_text import load_text_encoder
from .ldm_unet import original_layers, read_layout, unet_config
from .ldm_vae import load_vae
from .parts_fit import check_parts_fit
from .published import EncoderSpec, FamilySpec, family_of, load_family
from .schedule_config import schedule_from_config
from .sniff import UNET, require_checkpoint
from .vae_source import digest_with_vae, load_given_vae

_EPSILON = ("", "epsilon", "eps")  # how metadata spell what a model predicts; most files say nothing
_V_PREDICTION = ("v", "v_prediction", "v_pred", "vpred", "velocity")


def load_single_file(path: Path, choices: Choices) -> Components:
    """See `load_checkpoint`. Cheap checks come before anything is built."""
    file = open_tensor_file(path)
    family = load_family(require_checkpoint(file, needs_vae=choices.vae is None))
    vocabulary = find_clip_vocabulary(choices.tokenizer)
    schedule = single_file_schedule(file, family, choices)
    digest = sha256_of_file(path)
    if choices.vae is None:
        autoencoder = load_vae(file, family)
    else:
        autoencoder, of_vae = load_given_vae(choices.vae, family.vae, family.name)
        digest = digest_with_vae(digest, of_vae)
    encoders = [_text_encoder(file, spec, vocabulary, choices.dtype) for spec in family.text_encoders]
    unet = build_unet(file.load_under(UNET), family, f"The UNet in {file.path.name}", choices.dtype)
    codec = VaeCodec(autoencoder)
    check_parts_fit(path.name, unet, encoders, codec)
    return Components(
        unet, encoders, codec.encode, codec.decode, schedule,
        family_of(unet.config, len(encoders), codec.factor), vae=autoencoder, digest=digest, source=path.name,
    )  # fmt: skip


def build_unet(
    tensors: Mapping[str, Tensor], family: FamilySpec, what: str, dtype: torch.dtype | None
) -> UNet2DConditionModel:
    """A UNet from tensors with the original names (without `model.diffusion_model.`).

    `what` names it in errors. InputError: a shape that diffusers cannot build, or tensors that do not fit it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = unet_config(shapes, read_layout(shapes), family)
    return build(lambda: UNet2DConditionModel(**config), tensors, what=what, dtype=dtype, called=original_layers)


def single_file_schedule(file: TensorFile, family: FamilySpec, choices: Choices) -> NoiseSchedule:
    """The family's published schedule, with v-prediction and zero terminal SNR as the file states them.

    A file states them by an empty tensor named `v_pred` or `ztsnr`, or by metadata (`modelspec.prediction_type`,
    `ss_zero_terminal_snr`). Zero SNR applies to v-prediction only: epsilon carries no information at pure noise.
    InputError: it states another prediction, such as a flow's.
    """
    said = file.metadata.get("modelspec.prediction_type", "").strip().lower()
    is_v = "v_pred" in file or said.replace("-", "_") in _V_PREDICTION
    kind = choices.prediction_type or ("v_prediction" if is_v else "epsilon" if said in _EPSILON else said)
    zero = "ztsnr" in file or file.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    told = {**family.scheduler, "prediction_type": kind, "rescale_betas_zero_snr": zero and kind == "v_prediction"}
    return schedule_from_config(told, zero_terminal_snr=choices.zero_terminal_snr)


def _text_encoder(file: TensorFile, spec: EncoderSpec, vocabulary: Path, dtype: torch.dtype | None) -> TextEncoder:
    model = load_text_encoder(file, spec, dtype)
    own = vocabulary.with_name("tokenizer_2")
    folder = own if spec.pooled and vocabulary.name == "tokenizer" and own.is_dir() else vocabulary
    config = model.config
    tokenizer = load_tokenizer(
        folder, max_length=config.max_position_embeddings, rows=config.vocab_size, pad_token=spec.pad_token
    )
    return TextEncoder(model, tokenizer, spec.layer, spec.final_norm, spec.pooled, spec.embedding_key)

"""Text encoders of a single file, in transformers' or OpenCLIP's names, as transformers modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ...disk.tensor_file import TensorFile, size_of
from ...errors import InputError
from ..reading.config_check import checked, libraries_answer
from ..reading.meta_build import build
from .config_tables import TEXT
from .layer_names import count_numbered
from .published import EncoderSpec

CHANNELS_PER_HEAD = 64  # in every published CLIP text encoder
_UNUSED = re.compile(r"(embeddings\.position_ids|logit_scale|attn_mask)$")
_OPEN_CLIP = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "encoder.layers."),
    ("ln_final.", "final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def load_text_encoder(
    file: TensorFile, spec: EncoderSpec, dtype: torch.dtype | None
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The encoder `spec` describes, its sizes read from the tensors. InputError: absent or incomplete."""
    prefix = next((prefix for prefix in spec.prefixes if file.has_prefix(prefix)), None)
    if prefix is None:
        raise InputError(
            f"{file.path.name} holds no text encoder under {spec.prefixes[0]}: use a full checkpoint, one that has "
            "UNet, text encoder and VAE."
        )
    tensors = file.load_under(prefix)
    tensors = from_open_clip(tensors) if spec.layout == "open_clip" else tensors
    what = f"The text encoder in {file.path.name}"
    return build_text_encoder(text_config(tensors, spec.hidden_act, what), tensors, spec.pooled, what, dtype)


def build_text_encoder(
    config: CLIPTextConfig, tensors: Mapping[str, Tensor], projection: bool, what: str, dtype: torch.dtype | None
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A transformers text encoder with these tensors, whether or not their names have the `text_model.` prefix.

    transformers 5 dropped that prefix for CLIPTextModel but not for CLIPTextModelWithProjection, so the module's own
    names decide.
    """
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    with libraries_answer(what, "use another checkpoint of SD1.5 or SDXL"), torch.device("meta"):
        prefix = "text_model." if any(name.startswith("text_model.") for name in kind(config).state_dict()) else ""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("text_model.")
        if bare == "text_projection.weight":
            if projection:
                named[bare] = tensor
        elif not _UNUSED.search(bare):
            named[prefix + bare] = tensor
    return build(lambda: kind(config), named, what=what, dtype=dtype)


def text_config(tensors: Mapping[str, Tensor], hidden_act: str, what: str) -> CLIPTextConfig:
    """Sizes read from the tensors; begin and end of text are the last two vocabulary rows, as in CLIP."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    vocab, width = (size_of(shapes, "embeddings.token_embedding.weight", axis, what) for axis in (0, 1))
    projected = "text_projection.weight"
    settings: dict[str, Any] = dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=size_of(shapes, "encoder.layers.0.mlp.fc1.weight", 0, what),
        num_hidden_layers=count_numbered(tensors, r"encoder\.layers\.(\d{1,4})\."),
        num_attention_heads=max(1, width // CHANNELS_PER_HEAD),
        max_position_embeddings=size_of(shapes, "embeddings.position_embedding.weight", 0, what),
        hidden_act=hidden_act,
        projection_dim=size_of(shapes, projected, 0, what) if projected in shapes else width,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )
    return checked_text_config(settings, what)


def checked_text_config(values: Mapping[str, Any], what: str) -> CLIPTextConfig:
    """A text configuration from a file: only CLIP's own settings, none that would make transformers fetch anything."""
    with libraries_answer(what, "use another checkpoint of SD1.5 or SDXL"):
        return CLIPTextConfig(**checked(values, TEXT, what))


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names to transformers' (without prefix); fused query-key-value rows become three views."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in _OPEN_CLIP:
            name = name.replace(old, new)
        if ".attn.in_proj_" in name and tensor.dim() and tensor.shape[0] % 3 == 0 and len(tensor):
            stem, _, kind = name.partition(".attn.in_proj_")
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                renamed[f"{stem}.self_attn.{part}.{kind}"] = rows
        elif name == "text_projection" and tensor.dim() == 2:
            renamed["text_projection.weight"] = tensor.T.contiguous()
        else:
            renamed[name] = tensor
    return renamed

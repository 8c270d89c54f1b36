"""A wired CLIP as the trainer's text encoders and tokenizers, honouring CLIP Set Last Layer.

In: the encoders of SD1.5 and SDXL. Not in: encoding prompts (the trainer does, with gradients the host's CLIP lacks).
"""

from __future__ import annotations

import copy
from typing import Any

from ...apt_train.errors import InputError
from ...apt_train.families.components import TextEncoder
from ...apt_train.families.sd.published import EncoderSpec, FamilySpec
from ..hashing import AtPiece
from .weights import DigestCache, baked

_PROJECTION = "text_projection.weight"  # used only for SDXL's pooled vector; SD1.5 files lack it


def text_encoders(clip: Any, family: FamilySpec) -> list[TextEncoder]:
    """One encoder per spec of the family, on the CPU, from a CLIP that has passed `require_clip`."""
    return [_encoder(clip, spec) for spec in family.text_encoders]


def require_clip(clip: Any, family: FamilySpec) -> None:
    """InputError: the CLIP is not the family's."""
    found = sorted(name for name, _ in clip.cond_stage_model.named_children())
    wanted = sorted(spec.embedding_key for spec in family.text_encoders)
    if found != wanted:
        raise InputError(
            f"The CLIP is a {type(clip.cond_stage_model).__name__} ({', '.join(found)}), but this MODEL reads "
            f"{' and '.join(wanted)}: wire the CLIP of the same checkpoint."
        )


def text_digest(clip: Any, family: FamilySpec, cache: DigestCache, at_piece: AtPiece) -> str:
    """The digest of the weights that the encoders use, and of the layer that is read."""
    parts = []
    for spec in family.text_encoders:
        unread = frozenset[str]() if spec.pooled else frozenset({_PROJECTION})
        weights = cache.of(clip.patcher, f"{spec.embedding_key}.transformer.", at_piece, unread)
        parts.append(f"{weights} {layer_of(clip, spec.embedding_key)}")
    return "\n".join(parts)


def _encoder(clip: Any, spec: EncoderSpec) -> TextEncoder:
    from ...apt_train.families.sd.ldm_text import build_text_encoder, text_config

    key = spec.embedding_key
    tensors = {
        name.removeprefix("text_model."): tensor for name, tensor in baked(clip.patcher, f"{key}.transformer.").items()
    }
    what = f"The {key} encoder of the CLIP"
    model = build_text_encoder(text_config(tensors, spec.hidden_act, what), tensors, spec.pooled, what, None)
    layer, final_norm = layer_of(clip, key)
    return TextEncoder(model, _tokenizer(clip, spec), layer, final_norm, spec.pooled, key)


def layer_of(clip: Any, key: str) -> tuple[int, bool]:
    """Which hidden states the UNet reads, and whether the final norm is applied: as the host would encode."""
    encoder = getattr(clip.cond_stage_model, key)
    kind, index, _ = encoder.options_default
    if clip.layer_idx is not None:
        kind, index = ("last", None) if abs(clip.layer_idx) > encoder.num_layers else ("hidden", clip.layer_idx)
    if kind == "last" or index is None:
        return -1, True
    return int(index), bool(encoder.layer_norm_hidden_state)


def _tokenizer(clip: Any, spec: EncoderSpec) -> Any:
    """A copy, because its padding token is changed."""
    tokenizer = copy.deepcopy(getattr(clip.tokenizer, spec.embedding_key).tokenizer)
    tokenizer.pad_token = spec.pad_token
    return tokenizer

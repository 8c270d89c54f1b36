"""Single-file checkpoints and diffusers folders, small enough to write in a test.

Random diffusers and transformers modules are written under the names of the original Stable Diffusion layout, by a
converter of its own (the inverse of the loader's, sharing no code with it). The widths that tell the families apart
(768, 1280, 2048) are the real ones; everything else is tiny. Zeros in a file are holes, so apparent size costs nothing.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Encoder = CLIPTextModel | CLIPTextModelWithProjection

VOCABULARY = 600  # rows; write_clip_vocabulary fills 520 of them
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
_PIECE = 1 << 16  # bytes; a piece of zeros becomes a hole

_CROSS_DOWN, _DOWN, _CROSS_UP, _UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
_XL: dict[str, Any] = dict(
    block_out_channels=(32, 64, 128), attention_head_dim=(1, 1, 2), use_linear_projection=True,
    cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816, down_block_types=(_DOWN, _CROSS_DOWN, _CROSS_DOWN),
    up_block_types=(_CROSS_UP, _CROSS_UP, _UP),
)  # fmt: skip
_VAE: dict[str, Any] = dict(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
    up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=32,
)  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd15": dict(
        block_out_channels=(32, 64), attention_head_dim=8, cross_attention_dim=768, layers_per_block=2,
        down_block_types=(_CROSS_DOWN, _DOWN), up_block_types=(_UP, _CROSS_UP),
    ),
    "sdxl": {**_XL, "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 3)},
    "ssd1b": {
        **_XL, "layers_per_block": 2, "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
    },
    "koala": {**_XL, "layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2), "mid_block_type": None},
    "koala_mid": {**_XL, "layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)},
}  # fmt: skip


@dataclass(frozen=True)
class Modules:
    """The parts of a model; `kind` is one of UNETS."""

    kind: str
    unet: UNet2DConditionModel
    encoders: list[Encoder]
    vae: AutoencoderKL


@functools.cache
def tiny_modules(kind: str) -> Modules:
    """The same modules at every call: do not change them."""
    encoders: list[Encoder] = [text_encoder(768)] if kind == "sd15" else [text_encoder(768), text_encoder(1280)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=8, **UNETS[kind]).eval()
        vae = AutoencoderKL(**_VAE).eval()
    return Modules(kind, unet, encoders, vae)


@functools.cache
def text_encoder(width: int) -> Encoder:
    """CLIP-L-like at 768, OpenCLIP-bigG-like (with projection) at 1280; two layers."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=2, projection_dim=width,
        num_attention_heads=width // 64, hidden_act="quick_gelu" if width == 768 else "gelu",
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        return (CLIPTextModel if width == 768 else CLIPTextModelWithProjection)(config).eval()


# --- the original layout ------------------------------------------------------------------------------------


def single_file_tensors(modules: Modules) -> dict[str, Tensor]:
    """All tensors of a checkpoint under their names in the original layout."""
    tensors = _prefixed("model.diffusion_model.", unet_to_ldm(modules.unet))
    tensors |= _prefixed("first_stage_model.", vae_to_ldm(modules.vae.state_dict(), levels=2))
    first = _bare(modules.encoders[0].state_dict())
    if len(modules.encoders) == 1:
        tensors |= _prefixed("cond_stage_model.transformer.text_model.", first)
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        tensors |= _prefixed("conditioner.embedders.0.transformer.text_model.", first)
        tensors |= _prefixed("conditioner.embedders.1.model.", to_open_clip(_bare(modules.encoders[1].state_dict())))
        tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    return tensors


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def unet_to_ldm(unet: Any) -> dict[str, Tensor]:
    """A diffusers UNet's tensors (on meta too) under the original names, without prefix."""
    places = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    number = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        if block.upsamplers:
            member = 2 if getattr(block, "has_cross_attention", False) else 1
            places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{member}.conv"
    return {_unet_name(name, places): tensor for name, tensor in unet.state_dict().items()}


def _unet_name(name: str, places: Mapping[str, str]) -> str:
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    place = next(place for place in places if name.startswith(place + "."))
    module, _, rest = name[len(place) + 1 :].partition(".")
    if ".resnets." in place:
        module = inner[module]
    return ".".join(filter(None, (places[place], module, rest)))


def vae_to_ldm(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors under the original names, attention as 1x1 convolutions."""
    result = {}
    for name, tensor in tensors.items():
        for level in range(levels):
            name = name.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        for new, old in (
            ("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."), ("resnets.", "block."),
            ("mid_block.attentions.0.", "mid.attn_1."), ("to_out.0.", "proj_out."), ("group_norm.", "norm."),
            (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."), ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"), ("downsamplers.0.", "downsample."), ("upsamplers.0.", "upsample."),
        ):  # fmt: skip
            name = name.replace(new, old)
        result[name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.dim() == 2 else tensor
    return result


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' text tensors (without prefix) under OpenCLIP's names, query, key and value fused."""
    result = {}
    for name, tensor in tensors.items():
        for new, old in (
            ("embeddings.position_embedding.weight", "positional_embedding"), ("layer_norm", "ln_"),
            ("embeddings.token_embedding", "token_embedding"), ("encoder.layers", "transformer.resblocks"),
            ("final_ln_", "ln_final"), ("fc1", "c_fc"), ("fc2", "c_proj"), ("self_attn", "attn"),
        ):  # fmt: skip
            name = name.replace(new, old)
        if ".q_proj." in name:
            stem, kind = name.split(".q_proj.")
            source = stem.replace("transformer.resblocks", "encoder.layers").replace("attn", "self_attn")
            parts = [tensors[f"{source}.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{stem}.in_proj_{kind}"] = torch.cat(parts)
        elif name == "text_projection.weight":
            result["text_projection"] = tensor.T
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[name] = tensor
    return result


# --- files --------------------------------------------------------------------------------------------------


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Floating tensors in `dtype` (None: their own). Runs of zeros are left out as holes of a sparse file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    raws, offset = [], 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().to(dtype) if dtype and tensor.is_floating_point() else tensor.detach()
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        raws.append((offset, raw))
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + offset)
        for start, raw in raws:
            for number, piece in enumerate(raw.split(_PIECE)):
                if piece.any():
                    file.seek(8 + len(text) + start + number * _PIECE)
                    file.write(piece.numpy().tobytes())
    return path


def write_clip_vocabulary(folder: Path) -> Path:
    """A vocabulary built as CLIP's: bytes, bytes at a word's end, merges ("a", "dog", "photo"), begin, end."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" comes first, as in CLIP's
    merges = ["d o", "do g</w>", "p h", "ph o", "pho t", "phot o</w>"]
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


def write_diffusers_folder(
    folder: Path, modules: Modules, scheduler: dict[str, Any] | None = None, variant: str | None = None
) -> Path:
    """The modules as diffusers and transformers save them, with a model_index.json and CLIP vocabularies."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    modules.unet.save_pretrained(folder / "unet", variant=variant)
    modules.vae.save_pretrained(folder / "vae", variant=variant)
    DDIMScheduler(**(scheduler or {})).save_pretrained(folder / "scheduler")
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for suffix, encoder in zip(("", "_2")[: len(modules.encoders)], modules.encoders, strict=True):
        encoder.save_pretrained(folder / f"text_encoder{suffix}", variant=variant)
        write_clip_vocabulary(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", type(encoder).__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder

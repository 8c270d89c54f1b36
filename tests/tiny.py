"""Tiny random networks in the real libraries' own classes: what the tests train instead of real checkpoints.

`tiny_components("sd15")` and `tiny_components("sdxl")` have the two families' shapes (one text encoder; two, with
pooled vector and size ids) on 8-channel blocks; the word tokenizer is built in memory. Everything is seeded.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from apt_train.families.components import Components, Family, TextEncoder
from apt_train.families.noise import NoiseSchedule, PredictionType, rescale_zero_terminal_snr
from apt_train.families.sd.published import FILE_WORDS
from apt_train.families.sd.schedule_config import betas_from_config
from apt_train.families.vae_codec import VaeCodec

WORDS = (
    "a photo of toy dog teddy bear sub submarine on grass sand snow in the park red blue green big small ball "
    "with and hat my painting sketch picture thing zwx ! , . ' s"
).split()


def tiny_tokenizer(max_length: int = 16) -> PreTrainedTokenizerFast:
    """Lower-casing word tokenizer: <unk> 0, <pad> 1, words from 2, <bos>, <eos> last (the highest id, as in CLIP)."""
    vocab = {"<unk>": 0, "<pad>": 1, **{word: i for i, word in enumerate(WORDS, start=2)}}
    vocab |= {"<bos>": len(vocab), "<eos>": len(vocab) + 1}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def tiny_text_encoder(tokenizer: PreTrainedTokenizerFast, width: int = 32, projection: bool = False) -> torch.nn.Module:
    named: Any = tokenizer  # transformers' annotation has strings among the ids
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=named.bos_token_id,
        eos_token_id=named.eos_token_id,
        pad_token_id=named.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tiny_unet(sdxl: bool = False) -> UNet2DConditionModel:
    extra: dict[str, Any] = (
        dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=64,
        )
        if sdxl
        else dict(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=32,
        )
    )
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        **extra,
    ).eval()


def tiny_unet_without_decoder_attention() -> UNet2DConditionModel:
    """SDXL-shaped, with attention on the way down only."""
    config = dict(tiny_unet(sdxl=True).config)
    made: Any = UNet2DConditionModel.from_config({**config, "up_block_types": ("UpBlock2D", "UpBlock2D")})
    return made.eval()


def tiny_vae() -> AutoencoderKL:
    """Factor 4: a 64-pixel picture becomes 16 x 16 latents."""
    blocks: dict[str, Any] = dict(  # diffusers annotates them as tuples of one
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    return AutoencoderKL(
        **blocks,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=0.5,
    ).eval()


@functools.cache
def _built(sdxl: bool, seed: int) -> list[nn.Module]:
    """UNet, VAE and text encoders, each built once in a process; only copied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = [tiny_text_encoder(tiny_tokenizer())]
        if sdxl:
            encoders.append(tiny_text_encoder(tiny_tokenizer(), projection=True))
        unet, vae = tiny_unet(sdxl), tiny_vae()
    return [module.requires_grad_(False) for module in (unet, vae, *encoders)]


PLAIN = {bool, int, float, str, tuple, type(None), FrozenDict}  # what copies may share


def copied(value: Any, made: dict[int, Any]) -> Any:
    """A module's deep copy in a third of the time of `copy.deepcopy`, or of building it; `made`: the copies by id."""
    if type(value) in (dict, OrderedDict):
        return type(value)((name, copied(item, made)) for name, item in value.items()) if value else type(value)()
    if type(value) is set:  # of names
        return value.copy()
    if id(value) not in made:
        made[id(value)] = _copied_alone(value, made)
    return made[id(value)]


def _copied_alone(value: Any, made: dict[int, Any]) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), value.requires_grad)
    if not isinstance(value, nn.Module):
        return copy.deepcopy(value)
    new = made[id(value)] = type(value).__new__(type(value))
    for name, item in vars(value).items():
        vars(new)[name] = item if type(item) in PLAIN else copied(item, made)
    return new


def scaled_linear_schedule(
    num_timesteps: int = 1000, prediction_type: PredictionType = "epsilon", zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Stable Diffusion's own; `zero_terminal_snr`: even for epsilon, which no checkpoint may have."""
    given = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kept = torch.cumprod(1 - betas_from_config({**given, "num_train_timesteps": num_timesteps}), dim=0)
    return NoiseSchedule((rescale_zero_terminal_snr(kept) if zero_terminal_snr else kept).float(), prediction_type)


def tiny_components(kind: str = "sd15", prediction_type: str = "epsilon", seed: int = 0) -> Components:
    """A model of the given family's shape, float32 on the CPU, deterministic in `seed`."""
    made: dict[int, Any] = {}
    unet, vae, first, *further = (copied(module, made) for module in _built(kind == "sdxl", seed))
    encoders = [TextEncoder(first, tiny_tokenizer())]
    if further:
        encoders = [
            TextEncoder(first, tiny_tokenizer(), layer=-2, final_norm=False, embedding_key="clip_l"),
            TextEncoder(further[0], tiny_tokenizer(), layer=-2, final_norm=False, pooled=True, embedding_key="clip_g"),
        ]

    codec = VaeCodec(cast("AutoencoderKL", vae))
    schedule = scaled_linear_schedule(prediction_type=cast("PredictionType", prediction_type))
    family = Family(kind, 64, 4, FILE_WORDS[kind])
    return Components(
        unet,
        encoders,
        codec.encode,
        codec.decode,
        schedule,
        family,
        vae=vae,
        digest=f"tiny-{kind}-{prediction_type}-{seed}",
        source=f"tiny-{kind}",
    )


def unet_of(parts: Components) -> UNet2DConditionModel:
    assert isinstance(parts.unet, UNet2DConditionModel)
    return parts.unet


def schedule_of(parts: Components) -> NoiseSchedule:
    assert isinstance(parts.schedule, NoiseSchedule)
    return parts.schedule


def vae_of(parts: Components) -> AutoencoderKL:
    assert isinstance(parts.vae, AutoencoderKL)
    return parts.vae

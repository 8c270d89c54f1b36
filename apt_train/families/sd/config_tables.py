"""What each JSON file of a model may contain: one table of settings per file, and the bounds that span several.

Only what is listed here reaches a library. The ranges leave room around every published model. Values beyond them are
damaged, or crafted to exhaust time or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...disk.json_file import AGAIN
from ...errors import InputError
from ...settings_field import is_tuple
from ..reading.config_check import Table, checked, either, flag, null, number, one_of, optional, several, text, whole
from ..reading.tokenizer_check import LEAST_POSITIONS, MOST_TOKENS

MOST_BLOCKS = 250  # residual blocks and transformers of a UNet, as counted by `unet_blocks`; SDXL has 80
TENSORS_PER_BLOCK = 4  # minimum in a UNet; SD1.5 and SDXL have about 20

# -- model_index.json

_CLASS = optional(several(optional(text()), least=2, most=2))
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
INDEX: Table = {"_class_name": text(), **dict.fromkeys(PARTS, _CLASS)}

# -- unet/config.json

_WIDTH = whole(1, 8192)
_SIDE = whole(1, 256)  # of the latent at the default training size; 256 is 2048 pixels
_DEPTH = either(whole(1, 64), several(whole(1, 64), most=16))
_HEADS = whole(1, 256)
UNET: Table = {
    "_class_name": one_of("UNet2DConditionModel"),
    "sample_size": optional(either(_SIDE, several(_SIDE, least=2, most=2))),
    "in_channels": whole(1, 64),
    "out_channels": whole(1, 64),
    "center_input_sample": flag,
    "flip_sin_to_cos": flag,
    "freq_shift": number(0, 1),
    "down_block_types": several(one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    "mid_block_type": optional(one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
    "up_block_types": several(one_of("CrossAttnUpBlock2D", "UpBlock2D")),
    "only_cross_attention": either(flag, several(flag)),
    "mid_block_only_cross_attention": optional(flag),
    "block_out_channels": several(_WIDTH),
    "layers_per_block": either(whole(1, 16), several(whole(1, 16))),
    "downsample_padding": whole(0, 1),
    "mid_block_scale_factor": number(1e-3, 1e3),
    "dropout": number(0, 1),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "norm_num_groups": whole(1, 1024),
    "norm_eps": number(0, 1),
    "cross_attention_dim": _WIDTH,
    "transformer_layers_per_block": either(whole(1, 64), several(_DEPTH)),
    "reverse_transformer_layers_per_block": optional(several(_DEPTH)),
    "attention_head_dim": either(_HEADS, several(_HEADS)),
    "num_attention_heads": null,
    "dual_cross_attention": flag,
    "use_linear_projection": flag,
    "addition_embed_type": optional(one_of("text_time")),
    "addition_time_embed_dim": optional(whole(2, 4096)),
    "upcast_attention": optional(flag),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "resnet_skip_time_act": flag,
    "resnet_out_scale_factor": number(1e-3, 1e3),
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": optional(_WIDTH),
    "time_embedding_act_fn": null,
    "timestep_post_act": null,
    "conv_in_kernel": whole(3, 3),
    "conv_out_kernel": whole(3, 3),
    "projection_class_embeddings_input_dim": optional(whole(1, 65536)),
    "attention_type": one_of("default"),
    "cross_attention_norm": null,
}

# -- vae/config.json

_SCALE = number(1e-4, 1e4)
_SHIFT = optional(number(-1e4, 1e4))
_VAE: Table = {
    "in_channels": whole(3, 3),
    "out_channels": whole(3, 3),
    "latent_channels": whole(1, 64),
    "force_upcast": flag,
    "scaling_factor": _SCALE,
    "shift_factor": _SHIFT,
}
KL_VAE: Table = {
    **_VAE,
    "down_block_types": several(one_of("DownEncoderBlock2D")),
    "up_block_types": several(one_of("UpDecoderBlock2D")),
    "block_out_channels": several(_WIDTH),
    "layers_per_block": whole(1, 16),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "norm_num_groups": whole(1, 1024),
    "sample_size": optional(either(whole(1, 8192), several(whole(1, 8192), least=2, most=2))),
    "use_quant_conv": flag,
    "use_post_quant_conv": flag,
    "mid_block_add_attention": flag,
}
TINY_VAE: Table = {
    **_VAE,
    "encoder_block_out_channels": several(_WIDTH),
    "decoder_block_out_channels": several(_WIDTH),
    "act_fn": one_of("relu", "silu", "gelu"),
    "upsample_fn": one_of("nearest"),
    "upsampling_scaling_factor": whole(2, 2),
    "num_encoder_blocks": several(whole(1, 16)),
    "num_decoder_blocks": several(whole(1, 16)),
    "latent_magnitude": number(1e-3, 1e3),
    "latent_shift": number(-1e3, 1e3),
}

# -- text_encoder/config.json

_ID = whole(0, MOST_TOKENS)
TEXT: Table = {
    "vocab_size": whole(4, MOST_TOKENS),
    "hidden_size": _WIDTH,
    "intermediate_size": whole(1, 65536),
    "projection_dim": _WIDTH,
    "num_hidden_layers": whole(1, 100),
    "num_attention_heads": _HEADS,
    "max_position_embeddings": whole(LEAST_POSITIONS, 8192),
    "hidden_act": one_of("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "layer_norm_eps": number(0, 1),
    "attention_dropout": number(0, 1),
    "pad_token_id": optional(_ID),
    "bos_token_id": optional(_ID),
    "eos_token_id": _ID,  # it marks the end of a text
}

# -- scheduler/scheduler_config.json

_BETA = number(1e-9, 1)
SCHEDULER: Table = {
    "_class_name": text(),
    "num_train_timesteps": whole(2, 100_000),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": text(),
    "trained_betas": optional(several(_BETA, least=2, most=100_000)),
    "prediction_type": text(),
    "rescale_betas_zero_snr": optional(flag),
    "use_flow_sigmas": optional(flag),
    "sigma_data": optional(number(0, 1e4)),
}


# -- bounds across settings


def checked_unet(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keyword arguments of a `UNet2DConditionModel` like SD1.5's or SDXL's, small enough to build in seconds."""
    config = checked(values, UNET, where)
    if (blocks := unet_blocks(config)) > MOST_BLOCKS:
        raise InputError(f"{where} describes a UNet of {blocks} blocks, more than {MOST_BLOCKS}: {AGAIN}.")
    return config


def unet_blocks(config: Mapping[str, Any]) -> int:
    """Number of residual blocks and transformers, as if every level had as many layers as the largest."""
    levels = len(config.get("block_out_channels", (0,) * 4))
    depths = config.get("transformer_layers_per_block", 1), config.get("reverse_transformer_layers_per_block") or 1
    deepest = max(sum(map(_most, depth)) if is_tuple(depth) else depth * levels for depth in depths)
    return (2 * _most(config.get("layers_per_block", 2)) + 1) * (levels + deepest)


def _most(value: Any) -> int:
    return max(value) if is_tuple(value) else value


def checked_vae(values: Mapping[str, Any], table: Table, where: str) -> dict[str, Any]:
    """Keyword arguments of the VAE that the table describes; all its per-level lists must be equally long."""
    config = checked(values, table, where)
    lists = {name: value for name, value in config.items() if is_tuple(value) and name != "sample_size"}
    if len({len(value) for value in lists.values()}) > 1:
        lengths = ", ".join(f"{name} {len(value)}" for name, value in lists.items())
        raise InputError(f"{where} has lists of different lengths ({lengths}): {AGAIN}.")
    return config


def checked_scheduler(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings for `schedule_from_config`: beta_start at most beta_end, and one trained beta per timestep."""
    config = checked(values, SCHEDULER, where)
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps")
    if betas and steps and len(betas) != steps:
        raise InputError(f"{where} has {len(betas)} trained_betas for {steps} timesteps: {AGAIN}.")
    if config.get("beta_start", 1e-4) > config.get("beta_end", 0.02):
        raise InputError(f"{where} has a beta_start above its beta_end: {AGAIN}.")
    return config

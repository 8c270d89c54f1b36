"""Diffusers folders whose JSONs, vocabularies or weight files are damaged; what loads trains one step."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from transformers import CLIPTextConfig, CLIPTextModel

from apt_train.families.load import load_checkpoint
from tests.tiny import tiny_unet, tiny_vae
from tests.tiny_checkpoint import VOCABULARY, Modules, write_diffusers_folder
from tests.training import pictures
from tests.training import run as train_on

from .case import Case
from .damage import Edit, byte_edits, cases_of, file_edits, header_edits, json_edits

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
WORDS, WORDS_CONFIG = "tokenizer/vocab.json", "tokenizer/tokenizer_config.json"
WEIGHTS = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
EXTRA = [
    "attn_implementation", "_attn_implementation", "auto_map", "_name_or_path", "pretrained_model_name_or_path",
    "torch_dtype", "dtype", "quantization_config", "trust_remote_code", "_class_name", "_commit_hash",
    "transformers_version",
    "return_dict", "output_attentions", "pruned_heads", "id2label", "problem_type", "_use_default_values",
    "chunk_size_feed_forward",
    "class_embed_type", "encoder_hid_dim", "attention_type", "dual_cross_attention", "only_cross_attention", "dropout",
    "num_attention_heads", "reverse_transformer_layers_per_block", "prediction_type", "rescale_betas_zero_snr",
    "trained_betas", "latents_mean", "shift_factor", "scaling_factor", "model_max_length", "extra_special_tokens",
    "tokenizer_class", "added_tokens_decoder", "chat_template", "text_encoder_2", "unet", "vae", "tokenizer", "self",
]  # fmt: skip


def sample(folder: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    vae: AutoencoderKL = tiny_vae()
    write_diffusers_folder(folder, Modules("sd15", tiny_unet(), [CLIPTextModel(config)], vae))
    (folder / WORDS_CONFIG).write_text(
        '{"model_max_length": 77, "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", '
        '"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}'
    )


def run(folder: Path, case: Case) -> None:
    train_on(load_checkpoint(folder), pictures(1), steps=1, batch_size=1, augment_variants=1)


def cases(folder: Path) -> SearchStrategy[Case]:
    configs = [json_edits(folder / name, name, EXTRA, most=80) for name in (UNET, VAE, TEXT, SCHEDULER, INDEX)]
    words = [json_edits(folder / WORDS_CONFIG, WORDS_CONFIG, EXTRA, 20), json_edits(folder / WORDS, WORDS, EXTRA, 8)]
    files = [file_edits(name) for name in (UNET, TEXT, INDEX, WORDS, WEIGHTS[0], "unet", "tokenizer", SCHEDULER)]
    rest = [
        byte_edits("tokenizer/merges.txt"), byte_edits(TEXT), byte_edits(WORDS), _litter(),
        *(header_edits(folder / name, name) for name in WEIGHTS), *(byte_edits(name) for name in WEIGHTS),
    ]  # fmt: skip
    return cases_of(st.one_of(*configs, *configs, *words, st.one_of(*files), st.one_of(*rest)), most=2)


def _litter() -> SearchStrategy[Edit]:
    """Files that should not be there, or say what others say too."""
    names = [
        "unet/._diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/tokenizer.json", "tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json",
        "tokenizer/.DS_Store", "text_encoder/.ipynb_checkpoints/config.json", "text_encoder/generation_config.json",
        "unet/pytorch_model.bin", "tokenizer/chat_template.jinja", "scheduler/x.json",
    ]  # fmt: skip
    contents = ["", "{}", "[]", "null", '{"a": "b"}', '"x"', "\x00" * 64, '{"weight_map": {"x": "../../x"}}']
    return st.tuples(st.just("text"), st.sampled_from(names), st.sampled_from(contents))


def hostile() -> list[Case]:
    edits: list[Edit] = [("json", name, [], "set", raw) for name in (UNET, VAE, TEXT, SCHEDULER, INDEX, WORDS_CONFIG)
                         for raw in ('"x/y"', "[]", "null", "@nest 100000")]  # fmt: skip
    edits += [
        ("json", UNET, [key], "set", raw)
        for key, raw in [
            ("layers_per_block", "100000000"), ("block_out_channels", "[1e9]"), ("norm_num_groups", "0"),
            ("down_block_types", '["X"]'), ("block_out_channels", '"ab"'), ("attention_head_dim", "0"),
            ("act_fn", '"x"'), ("transformer_layers_per_block", "100000000"), ("sample_size", '"big"'),
            ("cross_attention_dim", "null"), ("in_channels", '"4"'), ("norm_eps", "NaN"), ("dropout", "2"),
            ("block_out_channels", "@many 10000 32"), ("_class_name", "[1]"), ("time_embedding_type", '"fourier"'),
        ]
    ]  # fmt: skip
    edits += [
        ("json", TEXT, [key], "set", raw)
        for key, raw in [
            ("attn_implementation", '"x/y"'), ("_attn_implementation", '"x/y"'), ("num_hidden_layers", "100000000"),
            ("hidden_act", '"x"'), ("num_attention_heads", "0"), ("vocab_size", "1e12"), ("vocab_size", '"600"'),
            ("max_position_embeddings", "1"), ("max_position_embeddings", "1000000000"), ("torch_dtype", '"x"'),
            ("dtype", "7"), ("layer_norm_eps", '"x"'), ("auto_map", '{"AutoModel": "x/y--m.M"}'),
            ("quantization_config", '{"quant_method": "bitsandbytes"}'), ("eos_token_id", "NaN"), ("bos_token_id",
            "[]"),
        ]
    ]  # fmt: skip
    edits += [
        ("json", WORDS_CONFIG, [key], "set", raw)
        for key, raw in [
            ("model_max_length", "1"), ("model_max_length", "0"), ("model_max_length", "-5"), ("model_max_length",
            '"x"'),
            ("pad_token", "[1]"), ("eos_token", '{"a": 1}'), ("tokenizer_class", "7"), ("bos_token", "null"),
            ("auto_map", '{"AutoTokenizer": ["x/y--t.T", null]}'), ("extra_special_tokens", "7"),
        ]
    ]  # fmt: skip
    edits += [
        ("json", SCHEDULER, [key], "set", raw)
        for key, raw in [
            ("num_train_timesteps", "0"), ("num_train_timesteps", "10000000000"), ("num_train_timesteps", '"x"'),
            ("beta_start", "NaN"), ("beta_end", "2"), ("beta_schedule", '"x"'), ("prediction_type", "7"),
            ("trained_betas", '["x"]'), ("trained_betas", "@many 1000000 0.5"), ("rescale_betas_zero_snr", '"x"'),
        ]
    ]  # fmt: skip
    edits += [
        ("json", VAE, [key], "set", raw)
        for key, raw in [
            ("scaling_factor", '"x"'), ("scaling_factor", "0"), ("scaling_factor", "NaN"), ("latent_channels", "-1"),
            ("layers_per_block", "100000000"), ("block_out_channels", "[]"), ("_class_name", "{}"), ("shift_factor",
            "[]"),
        ]
    ]  # fmt: skip
    edits += [("json", INDEX, ["unet"], "set", raw) for raw in ("7", "[]", '{"1": 2}', '["x", ["y"]]', '"ab"')]
    return [Case((edit,)) for edit in edits]

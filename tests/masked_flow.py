"""A family whose text has no padding, stands in a chat template, and is read by byte pairs that know spaces.

It stands for Qwen-Image and its kind, whose latents also have a dimension for frames. All else is `toy_flow`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from apt_train.families.components import Components, Family, TextEncoder
from apt_train.families.network import TextInput
from tests.tiny import tiny_components
from tests.toy_flow import FlowProcess, ToyFlow, ToyNetwork

BEFORE, AFTER = "<|im_start|>system\nsay it<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs as Qwen's: ` toy` is one token, `toy` another, and `zwx` several. It has no start token."""
    merges: list[tuple[str, str]] = []
    for word in ("toy", "dog", "bear", "grass", "on"):
        merges += [(word[:end], word[end]) for end in range(1, len(word))] + [("\u0120", word)]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges)]
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def spaced_encoder(**changes: Any) -> TextEncoder:
    """Its hidden states of the text before the caption are dropped."""
    tokenizer: Any = spaced_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen2Model(config).eval()
    cut = len(tokenizer(BEFORE)["input_ids"])
    kind: dict[str, Any] = {"padded": False, "template": (BEFORE, AFTER), "cut": cut, "embedding_key": "qwen"}
    return TextEncoder(model, tokenizer, **{**kind, **changes})


class FramedFlow(ToyFlow):
    def forward(self, noisy: Tensor, level: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        assert noisy.ndim == 5, "batch, channels, frames, height, width"
        return super().forward(noisy[:, :, 0], level, text, mask)[:, :, None]


class FramedNetwork(ToyNetwork):
    def predict(self, module: Any, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype) -> Tensor:
        return super().predict(module, noisy[:, :, None], timesteps, text, dtype)[:, :, 0]


def masked_flow_components() -> Components:
    parts = tiny_components()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = FramedFlow().eval()
    family = Family("custom", parts.family.resolution, parts.family.vae_factor)
    return replace(
        parts, unet=network, text_encoders=[spaced_encoder()], schedule=FlowProcess(), network=FramedNetwork(),
        family=family,
    )  # fmt: skip

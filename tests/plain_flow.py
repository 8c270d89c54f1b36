"""A family whose modules are nobody's library's: names of its own, no configuration, weights that somebody else owns.

It stands for a host's own modules: queries, keys and values in one projection, and text of two kinds, read one after
the other, of which the second has no start token and a length of its own. The process is `toy_flow`'s.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from apt_train.families.components import Components, Family, TextEncoder
from apt_train.families.file_words import FileWords
from apt_train.families.network import AttentionLayer, FeatureLayer, TextInput
from tests.tiny import tiny_components, tiny_tokenizer
from tests.toy_flow import FlowProcess, ToyNetwork

WIDTH, HEADS, LENGTH = 16, 2, 20


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)


class DoubleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_attn, self.txt_attn = Projections(), Projections()
        self.img_mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, places: Tensor, tokens: Tensor) -> Tensor:
        joined = torch.cat([self.txt_attn.qkv(tokens), self.img_attn.qkv(places)], dim=1)
        query, key, value = joined.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        places = places + self.img_attn.proj(mixed[:, tokens.shape[1] :])
        return places + self.img_mlp(places)


class PlainFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.txt_in, self.time_in = nn.Linear(4, WIDTH), nn.Linear(48, WIDTH), nn.Linear(1, WIDTH)
        self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(3))
        self.final = nn.Linear(WIDTH, 4)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, noisy: Tensor, level: Tensor, text: Tensor) -> Tensor:
        places = self.img_in(noisy.flatten(2).transpose(1, 2)) + self.time_in(level.to(noisy.dtype)[:, None])[:, None]
        tokens = self.txt_in(text)
        for block in self.double_blocks:
            places = block(places, tokens)
        return self.final(places * self.scale).transpose(1, 2).unflatten(2, noisy.shape[2:])


def third(number: int, output: Tensor) -> Tensor:
    return output.chunk(3, dim=-1)[number]


class PlainNetwork(ToyNetwork):
    def predict(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype
    ) -> Tensor:
        level = FlowProcess().level(timesteps.expand(len(noisy)))
        return module(noisy.to(dtype), level, text.hidden.to(dtype)).float()

    def _blocks(self, module: Any, part: str) -> dict[str, Any]:
        first = {"up": 2, "mid+up": 1, "all": 0}[part]
        return {f"double_blocks.{i}": module.double_blocks[i] for i in range(first, 3)}

    def features(self, module: Any, part: str) -> dict[str, FeatureLayer]:
        layers = {name: block.img_attn.proj for name, block in self._blocks(module, part).items()}
        return {f"{name}.img_attn.proj": FeatureLayer(layer) for name, layer in layers.items()}

    def attention(self, module: Any, part: str) -> dict[str, AttentionLayer]:
        scale, query, key = (WIDTH // HEADS) ** -0.5, partial(third, 0), partial(third, 1)
        return {
            name: AttentionLayer(block.img_attn.qkv, block.txt_attn.qkv, HEADS, scale, query, key)
            for name, block in self._blocks(module, part).items()
        }

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []

    def checkpoint_parts(self, module: nn.Module) -> int:
        return 0

    def checkpoint(self, module: Any, parts: int) -> None:
        """It cannot."""

    def block(self, path: str) -> str:
        return f"double {path.split('.')[1]}" if path.startswith("double_blocks.") else "in and out"


PLAIN = Family(
    "custom", 64, 4, FileWords("plain-flow", "plain"), ("img_attn.qkv", "img_attn.proj"), ("img_mlp.0", "img_mlp.2")
)


def tokenizer_without_start() -> PreTrainedTokenizerFast:
    found: Any = tiny_tokenizer(999)
    found.bos_token = None
    return found


def second_encoder(width: int = 48) -> TextEncoder:
    tokenizer = tokenizer_without_start()
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return TextEncoder(
        T5EncoderModel(config).encoder, tokenizer, embedding_key="t5", sequence=1, starts=False, length=LENGTH
    )  # fmt: skip


def plain_flow_components() -> Components:
    """Half-precision weights made in inference mode, trainable and in training mode, as an owner may keep them."""
    parts = tiny_components()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(7)
        network, second = PlainFlow().to(torch.bfloat16), second_encoder()
    return replace(
        parts, unet=network, text_encoders=[*parts.text_encoders, second], schedule=FlowProcess(),
        network=PlainNetwork(), family=PLAIN, borrowed=True,
    )  # fmt: skip

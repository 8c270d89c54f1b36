"""Stable Diffusion's UNet (1.x, 2.x and XL) behind the `Network` interface: its call, attention and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...config import Layers
from ..network import AttentionLayer, FeatureLayer, TextInput

_BLOCKS: dict[Layers, tuple[str, ...]] = {
    "up": ("up_blocks",),
    "mid+up": ("mid_block", "up_blocks"),
    "all": ("down_blocks", "mid_block", "up_blocks"),
}
_BLOCK = re.compile(r"\.(resnets|transformer_blocks)\.\d+$")


class StableDiffusion:
    """For a diffusers UNet2DConditionModel.

    Features are self-attention outputs [paper], those of `attn1` after its projection [ours]. Attention is
    cross-attention, `attn2` [paper].
    """

    def predict(self, module: Any, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype) -> Tensor:
        extra = None
        if reads_size_ids(module):
            assert text.pooled is not None, "a UNet with size ids reads a pooled text vector"
            # The ids stay float32: bf16 rounds 1023.
            extra = {"text_embeds": text.pooled.to(dtype), "time_ids": text.geometry}
        hidden = text.hidden.to(dtype)
        return module(noisy.to(dtype), timesteps, encoder_hidden_states=hidden, added_cond_kwargs=extra).sample.float()

    def features(self, module: nn.Module, part: Layers) -> dict[str, FeatureLayer]:
        return {name: FeatureLayer(layer) for name, layer in _attention_modules(module, "attn1", part).items()}

    def attention(self, module: nn.Module, part: Layers) -> dict[str, AttentionLayer]:
        found: dict[str, Any] = dict(_attention_modules(module, "attn2", part))
        return {name: AttentionLayer(a.to_q, a.to_k, a.heads, a.scale) for name, a in found.items()}

    def block(self, path: str) -> str:
        found = re.match(r"(down|up)_blocks\.(\d+)|mid_block", path)
        if found is None:
            return "in and out"
        return "middle" if found[1] is None else f"{found[1]} {found[2]}"

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """Residual blocks and transformer blocks."""
        modules = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
        return [block for name, block in modules if _BLOCK.search(name)]

    def checkpoint_parts(self, module: Any) -> int:
        """Levels of the UNet. The outer ones have the most positions for the fewest channels."""
        return len(module.config["block_out_channels"])

    def checkpoint(self, module: Any, parts: int) -> None:
        module.enable_gradient_checkpointing()
        for name, part in cast("Iterator[tuple[str, Any]]", module.named_modules()):
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing = self._level(module, name) < parts

    def _level(self, module: Any, path: str) -> int:
        """0: the outermost."""
        deepest, found = self.checkpoint_parts(module) - 1, re.match(r"(down|up)_blocks\.(\d+)", path)
        if found is None:
            return deepest
        return int(found[2]) if found[1] == "down" else deepest - int(found[2])

    def checkpoints_on_gpu(self, module: Any) -> bool:
        """Only for UNets of SDXL's kind."""
        return reads_size_ids(module)

    def latent_channels(self, module: Any) -> int:
        return int(module.config["in_channels"])

    def latent_multiple(self, module: Any) -> int:
        """Two to the power of the number of downsamplings."""
        return 2 ** (len(module.config["block_out_channels"]) - 1)


def reads_size_ids(module: Any) -> bool:
    """Whether the UNet reads SDXL's pooled text vector and size ids."""
    return module.config.get("addition_embed_type") == "text_time"


def _attention_modules(module: nn.Module, kind: str, part: Layers) -> dict[str, nn.Module]:
    pattern = re.compile(rf"({'|'.join(_BLOCKS[part])})\..*\.{kind}")
    modules = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    return {name: layer for name, layer in modules if pattern.fullmatch(name)}

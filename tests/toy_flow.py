"""A second family: a flow-matching transformer with joint attention, as small as it can be.

Its last block has caption and picture in a row, and positions that turn its queries, as the single blocks of FLUX.

What a family has to say is said here alone: how noise is mixed in and taken away, how the network is called, and which
of its layers are read. `toy_flow_components` goes through the trainer as a checkpoint of it would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_train.families.components import Components, Family
from apt_train.families.network import AttentionLayer, FeatureLayer, TextInput, require_sampling_steps
from tests.tiny import tiny_components

WIDTH, HEADS = 16, 2


class FlowProcess:
    """x_t = (1 - s) x_0 + s noise, s = (t + 1) / 1000; the network predicts noise - x_0 (arXiv 2210.02747)."""

    num_timesteps, prediction, zero_terminal_snr, fingerprint = 1000, "flow", True, b"toy flow"

    def level(self, timesteps: Tensor) -> Tensor:
        return (timesteps.float() + 1) / self.num_timesteps

    def draw(self, draws: torch.Generator) -> int:
        """Most often at middle noise (arXiv 2403.03206)."""
        return int(torch.sigmoid(torch.randn((), generator=draws)) * self.num_timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        level = self.level(timesteps).view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return noisy + (1 - self.level(timesteps).view(-1, 1, 1, 1)) * prediction

    def sampling_timesteps(self, steps: int) -> list[int]:
        require_sampling_steps(steps, self.num_timesteps)
        return [round(self.num_timesteps * (steps - i) / steps) - 1 for i in range(steps)]

    def step(self, latents: Tensor, prediction: Tensor, now: int, then: int | None) -> Tensor:
        end = 0.0 if then is None else (then + 1) / self.num_timesteps
        return latents + (end - (now + 1) / self.num_timesteps) * prediction


class JointAttention(nn.Module):
    """Positions and caption tokens look at one another; the names are diffusers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, places: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        own, text = (self.to_q, self.to_k, self.to_v), (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        joined = [torch.cat([a(places), b(tokens)], dim=1) for a, b in zip(own, text, strict=True)]
        query, key, value = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in joined)
        seen = None if mask is None else beside(mask.new_ones(places.shape[:2]), mask)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)
        return self.to_out[0](mixed[:, : places.shape[1]])


def beside(first: Tensor, second: Tensor) -> Tensor:
    """What every query may look at, bool (N, 1, 1, keys): padding is left out."""
    return torch.cat([first, second], dim=1)[:, None, None]


def turned(query: Tensor) -> Tensor:
    """Stands for rotary positions: computed behind the layer, so that no hook sees it.

    Counted from the picture's end, because a caption's padding must not move the picture.
    """
    return query * torch.arange(query.shape[1], device=query.device).flip(0).to(query.dtype).cos()[:, None]


class SingleAttention(nn.Module):
    """Caption and picture in one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, places: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        both = torch.cat([tokens, places], dim=1)
        made = turned(self.to_q(both)), self.to_k(both), self.to_v(both)
        query, key, value = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in made)
        seen = None if mask is None else beside(mask, mask.new_ones(places.shape[:2]))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)
        return self.to_out[0](mixed)[:, tokens.shape[1] :]


class ToyFlow(nn.Module):
    def __init__(self, text_width: int = 32) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.enter, self.read, self.time = nn.Linear(4, WIDTH), nn.Linear(text_width, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList([JointAttention(), JointAttention(), SingleAttention()])
        self.leave, self.recompute = nn.Linear(WIDTH, 4), False

    def forward(self, noisy: Tensor, level: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        places = self.enter(noisy.flatten(2).transpose(1, 2)) + self.time(level.to(noisy.dtype)[:, None])[:, None]
        tokens = self.read(text)
        for block in self.blocks:
            inputs = places, tokens, mask
            seen = checkpoint(block, *inputs, use_reentrant=False) if self.recompute else block(*inputs)
            places = places + seen
        return self.leave(torch.tanh(places)).transpose(1, 2).unflatten(2, noisy.shape[2:])


class ToyNetwork:
    tokens = 0  # of the last pass

    def predict(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype
    ) -> Tensor:
        level = FlowProcess().level(timesteps.expand(len(noisy)))
        self.tokens = text.hidden.shape[1]
        return module(noisy.to(dtype), level, text.hidden.to(dtype), text.mask).float()

    def features(self, module: Any, part: str) -> dict[str, FeatureLayer]:
        blocks = {f"blocks.{i}": module.blocks[i] for i in range({"up": 2, "mid+up": 1, "all": 0}[part], 2)}
        joint = {name: FeatureLayer(block) for name, block in blocks.items()}
        return {**joint, "blocks.2": FeatureLayer(module.blocks[2].to_out[0], lambda out: out[:, self.tokens :])}

    def attention(self, module: Any, part: str) -> dict[str, AttentionLayer]:
        scale, single = (WIDTH // HEADS) ** -0.5, module.blocks[2]
        blocks = {f"blocks.{i}": module.blocks[i] for i in range({"up": 2, "mid+up": 1, "all": 0}[part], 2)}
        joint = {name: AttentionLayer(b.to_q, b.add_k_proj, HEADS, scale) for name, b in blocks.items()}
        query_of, key_of = lambda out: turned(out)[:, self.tokens :], lambda out: out[:, : self.tokens]
        return {**joint, "blocks.2": AttentionLayer(single.to_q, single.to_k, HEADS, scale, query_of, key_of)}

    def blocks(self, module: Any) -> list[nn.Module]:
        return list(module.blocks)

    def checkpoint_parts(self, module: nn.Module) -> int:
        return 1

    def checkpoint(self, module: Any, parts: int) -> None:
        module.recompute = parts > 0

    def block(self, path: str) -> str:
        return "middle"

    def checkpoints_on_gpu(self, module: nn.Module) -> bool:
        return False

    def latent_channels(self, module: nn.Module) -> int:
        return 4

    def latent_multiple(self, module: nn.Module) -> int:
        return 1


def toy_flow_components() -> Components:
    """With the tiny text encoder and VAE of the other family: only network and process are its own."""
    parts = tiny_components()
    torch.manual_seed(7)
    family = Family("custom", parts.family.resolution, parts.family.vae_factor)
    return replace(parts, unet=ToyFlow().eval(), schedule=FlowProcess(), network=ToyNetwork(), family=family)

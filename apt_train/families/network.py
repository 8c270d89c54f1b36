"""What a family says of its network and of its noise: all that training, sampling and measuring ask of a model.

A family is an object with these members; nothing else knows what kind of network it is. `sd/network.py` is Stable
Diffusion's, `noise.py` has its process. A flow transformer is one more file of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import Layers
from ..errors import InputError


@dataclass(frozen=True)
class TextInput:
    """What a network reads of captions. `pooled`, `geometry`: where the family has them."""

    hidden: Tensor  # (N, tokens, width)
    pooled: Tensor | None = None  # (N, width)
    geometry: Tensor | None = None  # float32 (N, 6): original height, width, crop top, left, target height, width


@dataclass(frozen=True)
class AttentionLayer:
    """How the attention from positions to caption tokens is read: softmax(query key^T * scale), by head."""

    query: nn.Module  # gives (N, positions, heads * head_dim)
    key: nn.Module  # gives (N, tokens, heads * head_dim)
    heads: int
    scale: float


class Network(Protocol):
    """The network that carries the adapter. The object holds no weights: it gets the module."""

    def predict(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype
    ) -> Tensor:
        """The module's own prediction, float32 (N, C, h, w), computed in `dtype`.

        `noisy` (N, C, h, w), `timesteps` int64 (N,) or one for all, `text` of N rows.
        """
        ...

    def timesteps(self, inputs: tuple[Any, ...]) -> Tensor:
        """The timesteps of a call of the module, int64 (N,) or one for all, out of its positional arguments."""
        ...

    def features(self, module: nn.Module, part: Layers) -> Mapping[str, nn.Module]:
        """Layers of a part of the network whose output (N, positions, channels) is stabilized; empty: it has none."""
        ...

    def attention(self, module: nn.Module, part: Layers) -> Mapping[str, AttentionLayer]:
        """Layers of a part of the network whose attention to the caption is aligned; empty: it has none."""
        ...

    def block(self, path: str) -> str:
        """Which part of the network a layer lies in, by its path, in words: `down 1`, `middle`; else `in and out`."""
        ...

    def checkpoint(self, module: nn.Module, on: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        ...

    def checkpoints_on_gpu(self, module: nn.Module) -> bool:
        """Whether that is the default on a GPU: activations would take more than the weights."""
        ...

    def latent_channels(self, module: nn.Module) -> int: ...

    def latent_multiple(self, module: nn.Module) -> int:
        """Sides of a latent have to be multiples of this."""
        ...


class Process(Protocol):
    """How pictures become noise, and the way back. A timestep is a whole number, 0 (clean) to num_timesteps - 1."""

    @property
    def num_timesteps(self) -> int: ...

    @property
    def prediction(self) -> str:
        """What the network predicts, in a word: epsilon, v_prediction, flow."""
        ...

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """Equal for equal processes: a part of what a run is."""
        ...

    def level(self, timesteps: Tensor) -> Tensor:
        """How noisy, float32 in [0, 1], 0 clean."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents; all (N, C, h, w), timesteps int64 (N,)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is trained to predict."""
        ...

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a prediction stands for."""
        ...

    def sampling_timesteps(self, steps: int) -> list[int]:
        """The timesteps that a sampler visits, falling. InputError: more than there are."""
        ...

    def step(self, latents: Tensor, prediction: Tensor, now: int, then: int | None) -> Tensor:
        """One deterministic sampling step from `now` down to `then`; None: to where sampling ends."""
        ...


def require_sampling_steps(steps: int, most: int) -> None:
    """InputError: a number of sampling steps that a process of `most` timesteps does not have."""
    if not 1 <= steps <= most:
        raise InputError(f"The number of sampling steps is {steps}: give a whole number from 1 to {most}.")

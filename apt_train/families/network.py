"""A family's interface to its network and its noise: all that training, sampling and measuring need from a model.

A family is an object with these members; no other code knows what kind of network it is. `sd/network.py` is Stable
Diffusion's network, `noise.py` its process. A flow transformer would add one file of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import Layers
from ..errors import InputError


@dataclass(frozen=True)
class TextInput:
    """What a network reads beside the latents. `pooled`, `geometry`, `guidance`: only in families that use them.

    `mask`: bool (N, tokens), False for the padding behind a shorter text; None: nothing is padded.
    """

    hidden: Tensor  # (N, tokens, width)
    pooled: Tensor | None = None  # (N, width)
    geometry: Tensor | None = None  # float32 (N, 6): original height, width, crop top, left, target height, width
    guidance: float = 1.0  # the strength of guidance, for a distilled network that reads it; 1 in training
    mask: Tensor | None = None


@dataclass(frozen=True)
class FeatureLayer:
    """A layer whose output is stabilized. `output_of`: as `query_of` of an `AttentionLayer`."""

    module: nn.Module  # outputs (N, positions, channels)
    output_of: Callable[[Any], Tensor] = lambda output: output


@dataclass(frozen=True)
class AttentionLayer:
    """How to compute attention from positions to caption tokens: softmax(query key^T * scale), per head.

    `query_of`, `key_of`: an output -> that form, for a module that outputs more than that (queries, keys and values at
    once, caption and picture in a row) or in another shape (a norm that works on heads, before rotary positions). They
    are called at the end of each pass.
    """

    query: nn.Module  # outputs (N, positions, heads * head_dim)
    key: nn.Module  # outputs (N, tokens, heads * head_dim)
    heads: int
    scale: float
    query_of: Callable[[Any], Tensor] = lambda output: output
    key_of: Callable[[Any], Tensor] = lambda output: output


class Network(Protocol):
    """The network that carries the adapter. This object holds no weights; each call receives the module.

    It may keep what the forms of its layers need of the last `predict`, such as the number of tokens.
    """

    def predict(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: TextInput, dtype: torch.dtype
    ) -> Tensor:
        """The module's own prediction, float32 (N, C, h, w), computed in `dtype`.

        `noisy` (N, C, h, w), `timesteps` int64 (N,) or a single one, `text` with N rows.
        """
        ...

    def features(self, module: nn.Module, part: Layers) -> Mapping[str, FeatureLayer]:
        """Layers in this part whose outputs are stabilized; may be empty."""
        ...

    def attention(self, module: nn.Module, part: Layers) -> Mapping[str, AttentionLayer]:
        """Layers in this part whose attention to the caption is aligned; may be empty."""
        ...

    def block(self, path: str) -> str:
        """The part of the network that a layer path lies in, in a word or two: `down 1`, `middle`, `joint 12`."""
        ...

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """The modules that gradient checkpointing recomputes one by one."""
        ...

    def checkpoint_parts(self, module: nn.Module) -> int:
        """How many parts of the network can be recomputed, each by itself; 0: it cannot."""
        ...

    def checkpoint(self, module: nn.Module, parts: int) -> None:
        """Gradient checkpointing in this many parts, those first that save the most memory for their time; 0: off."""
        ...

    def checkpoints_on_gpu(self, module: nn.Module) -> bool:
        """The default on a GPU: whether activations would take more memory than the weights."""
        ...

    def latent_channels(self, module: nn.Module) -> int: ...

    def latent_multiple(self, module: nn.Module) -> int:
        """Number that the sides of a latent must be multiples of."""
        ...


class Process(Protocol):
    """Noising and denoising. A timestep is an integer from 0 (clean) to num_timesteps - 1."""

    @property
    def num_timesteps(self) -> int: ...

    @property
    def prediction(self) -> str:
        """What the network predicts: epsilon, v_prediction, flow."""
        ...

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """Equal for equal processes; part of a run's identity."""
        ...

    def draw(self, draws: torch.Generator) -> int:
        """A timestep to train at."""
        ...

    def level(self, timesteps: Tensor) -> Tensor:
        """The amount of noise, float32 in [0, 1], where 0 is clean."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents; all (N, C, h, w), timesteps int64 (N,)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is trained to predict."""
        ...

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a prediction implies."""
        ...

    def sampling_timesteps(self, steps: int) -> list[int]:
        """The timesteps a sampler visits, descending. InputError: more than there are."""
        ...

    def step(self, latents: Tensor, prediction: Tensor, now: int, then: int | None) -> Tensor:
        """One deterministic sampling step from `now` down to `then`; None: down to the end of sampling."""
        ...


def require_sampling_steps(steps: int, most: int) -> None:
    """InputError unless a process of `most` timesteps allows this number of sampling steps."""
    if not 1 <= steps <= most:
        raise InputError(f"The number of sampling steps is {steps}: give a whole number from 1 to {most}.")

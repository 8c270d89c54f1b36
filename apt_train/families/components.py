"""The parts of a checkpoint as the trainer uses them, wherever they came from.

A file, a diffusers folder and a host's wires all become one `Components`; nothing after it asks which it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .file_words import FileWords
from .levels import levels_of
from .network import Network, Process
from .sd.network import StableDiffusion


def loses(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether a cast may round. Floats of one byte fit into all that is trained in."""
    return source.itemsize > 1 and torch.promote_types(source, target) != target


def _rounding(dtype: torch.dtype | None, in_fp8: bool) -> str:
    names = [*(["fp8"] if in_fp8 else []), *([str(dtype)] if dtype is not None else [])]
    return " and ".join(names)


def token_embedding(model: nn.Module) -> nn.Embedding:
    """A text encoder's table of token embeddings."""
    return model.get_input_embeddings()  # type: ignore[operator]


@dataclass(frozen=True)
class Family:
    """What kind of model this is."""

    name: str
    resolution: int  # pixels, the side of the square the model was made for
    vae_factor: int  # pixels per latent position, per side
    file_words: FileWords = FileWords()


@dataclass
class TextEncoder:
    """One text encoder with its tokenizer and which of its layers the UNet reads."""

    model: nn.Module  # transformers CLIPTextModel or CLIPTextModelWithProjection
    tokenizer: Any  # transformers tokenizer; model_max_length is the chunk length (77 for CLIP)
    layer: int = -1  # index into hidden_states
    final_norm: bool = True  # apply the final layer norm to that layer's output
    pooled: bool = False  # its projected vector at EOS is the UNet's `text_embeds`
    embedding_key: str = "clip_l"  # name of its rows in an embedding file
    _kept_table: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def table(self) -> Tensor:
        """The token embeddings (vocabulary, width) as they were loaded, also after a run that has rounded the model."""
        return token_embedding(self.model).weight if self._kept_table is None else self._kept_table

    def keep_table(self, dtype: torch.dtype) -> None:
        """Called before the model is cast to `dtype`: the next identifier must start from the same rows as this one."""
        if self._kept_table is None and loses(self.table.dtype, dtype):
            self._kept_table = self.table.detach().cpu()


@dataclass
class Components:
    """A loaded model.

    `encode`: images float32 (N, 3, H, W) in [-1, 1] -> (mean, std or None), each (N, C, H/f, W/f), already scaled to
    the UNet's latent space (std None: the latents are fixed). `decode`: the way back, to images in [-1, 1].
    `vae`: the module both run on, moved on and off the device by the trainer; None when the caller looks after that.
    """

    unet: nn.Module  # what carries the adapter: a UNet2DConditionModel, or what `network` takes
    text_encoders: list[TextEncoder]
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    decode: Callable[[Tensor], Tensor]
    schedule: Process
    family: Family
    vae: nn.Module | None = None
    digest: str = ""  # of the source weights; enters a run's content hash
    source: str = ""  # for messages and metadata: a file or folder name, no path
    notes: list[str] = field(default_factory=list[str])  # sentences the user should see once
    network: Network = field(default_factory=StableDiffusion)  # how `unet` is called and read
    rounded_to: torch.dtype | None = None  # what an earlier run has rounded the weights to, in place
    stored_in_fp8: bool = False  # whether an earlier run has rounded the frozen layers to one byte, in place

    def use(self, dtype: torch.dtype, *, in_fp8: bool = False) -> None:
        """Note that a run casts UNet and text encoders to `dtype`, their layers by way of one byte with `in_fp8`.

        InputError: an earlier run has rounded them otherwise.
        """
        untouched = self.rounded_to is None and not self.stored_in_fp8
        if self.rounded_to not in (None, dtype) or not (untouched or self.stored_in_fp8 == in_fp8):
            raise InputError(
                f"An earlier run has rounded this model to {_rounding(self.rounded_to, self.stored_in_fp8)}, and this "
                f"one is to train in {_rounding(dtype, in_fp8)}: load the checkpoint again."
            )
        self.stored_in_fp8 = in_fp8
        modules = [self.unet, *(encoder.model for encoder in self.text_encoders)]
        held = {parameter.dtype for module in modules for parameter in module.parameters()}
        if any(loses(one, dtype) for one in held):
            self.rounded_to = dtype

    @property
    def levels(self) -> Tensor:
        """The noise level of each timestep, float64 (num_timesteps,) in [0, 1], rising."""
        return levels_of(self.schedule)

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of: the VAE's factor times what the network needs of a latent."""
        return self.family.vae_factor * self.network.latent_multiple(self.unet)

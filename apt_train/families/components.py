"""The parts of a checkpoint in the form the trainer uses, wherever they came from.

A file, a diffusers folder and a host's wires all become one `Components`. Later code does not know the difference.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AdapterTargets, Storage
from ..errors import InputError
from .file_words import FileWords
from .levels import levels_of
from .network import Network, Process
from .noise import PredictionType
from .sd.network import StableDiffusion
from .swapped import lent

_LENT: dict[int, int] = {}  # which thread uses which network, by their ids
_LENDING = threading.Lock()


def loses(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether a cast may round. One-byte floats fit exactly into every training dtype."""
    return source.itemsize > 1 and torch.promote_types(source, target) != target


def _rounding(dtype: torch.dtype | None, storage: Storage) -> str:
    names = [*([storage] if storage != "full" else []), *([str(dtype)] if dtype is not None else [])]
    return " and ".join(names)


def token_embedding(model: nn.Module) -> nn.Embedding:
    """A text encoder's token embedding table."""
    return model.get_input_embeddings()  # type: ignore[operator]


@dataclass(frozen=True)
class Choices:
    """What the caller says beside the checkpoint: the arguments of `load_checkpoint`."""

    tokenizer: str | Path | None = None
    dtype: torch.dtype | None = None
    prediction_type: PredictionType | None = None
    vae: str | Path | None = None
    zero_terminal_snr: bool | None = None


@dataclass(frozen=True)
class Family:
    """What kind of model this is.

    `attention`, `feed_forward`: ends of the paths of linear layers that carry the adapter, by default as diffusers
    names them in all its models.
    """

    name: str
    resolution: int  # pixels, the side of the square the model was made for
    vae_factor: int  # pixels per latent position, per side
    file_words: FileWords = FileWords()
    attention: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    feed_forward: tuple[str, ...] = ("ff.net.0.proj", "ff.net.2")
    reads_guidance: bool = False  # whether the network itself is told the guidance, as FLUX.1-dev

    def adapted(self, targets: AdapterTargets) -> tuple[str, ...]:
        return self.attention + (self.feed_forward if targets == "attention+ff" else ())


@dataclass
class TextEncoder:
    """One text encoder with its tokenizer, and which of its outputs the UNet reads.

    `sequence`: outputs of encoders with the same number are joined along features, which takes tokenizers that agree;
    those with different numbers follow one another, the narrower ones padded with zeros. None: only the pooled vector
    is read. Pooled vectors of several encoders are joined.
    """

    model: nn.Module  # as transformers' CLIPTextModel or T5EncoderModel: its call, its outputs, its token embeddings
    tokenizer: Any  # transformers tokenizer; model_max_length is the chunk length (77 for CLIP)
    layer: int = -1  # index into hidden_states
    final_norm: bool = True  # apply the final layer norm to that layer's output
    pooled: bool = False  # whether its projected EOS vector is the UNet's `text_embeds`
    embedding_key: str = "clip_l"  # name of its tensor in an embedding file
    sequence: int | None = 0
    starts: bool = True  # whether its texts begin with a start token, as CLIP's do and T5's do not
    length: int = 0  # positions in a chunk; 0: as many as model and tokenizer allow
    padded: bool = True  # whether a text fills whole chunks; otherwise it keeps its length, see `TextInput.mask`
    template: tuple[str, str] | None = None  # what stands before and after each text, in place of start and end token
    cut: int = 0  # how many of the template's first hidden states are dropped
    _kept_table: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def table(self) -> Tensor:
        """The token embeddings (vocabulary, width) as loaded, even after a run has rounded the model."""
        return token_embedding(self.model).weight if self._kept_table is None else self._kept_table

    def keep_table(self, dtype: torch.dtype) -> None:
        """Call before casting the model to `dtype`, so that the next identifier starts from the same rows."""
        if self._kept_table is None and loses(self.table.dtype, dtype):
            self._kept_table = self.table.detach().cpu()


@dataclass
class Components:
    """A loaded model.

    `encode`: images float32 (N, 3, H, W) in [-1, 1] -> (mean, std or None), each (N, C, H/f, W/f), already scaled to
    the UNet's latent space (std None: the latents are fixed). `decode`: back to images in [-1, 1].
    `vae`: the module behind both, moved on and off the device by the trainer; None if the caller manages it.
    """

    unet: nn.Module  # carries the adapter: a UNet2DConditionModel, or what `network` expects
    text_encoders: list[TextEncoder]
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    decode: Callable[[Tensor], Tensor]
    schedule: Process
    family: Family
    vae: nn.Module | None = None
    digest: str = ""  # hash of the source weights; part of a run's content hash
    source: str = ""  # file or folder name, not a path, for messages and metadata
    notes: list[str] = field(default_factory=list[str])  # sentences the user should see once
    network: Network = field(default_factory=StableDiffusion)  # how `unet` is called and read
    rounded_to: torch.dtype | None = None  # dtype to which an earlier run rounded the weights in place
    stored_as: Storage = "full"  # the storage to which an earlier run rounded the frozen layers in place
    came_in: frozenset[torch.dtype] = frozenset()  # the weights' dtypes before the first run; empty: no run yet
    borrowed: bool = False  # whether a run gives the modules back as they were: weights, dtypes, devices, modes

    @property
    def modules(self) -> list[nn.Module]:
        """Those that a run casts and moves: the UNet and the text encoders."""
        return [self.unet, *(encoder.model for encoder in self.text_encoders)]

    @contextlib.contextmanager
    def lent(self) -> Generator[None]:
        """Inside the block the modules may be cast, moved and frozen; borrowed ones are then as they were before.

        InputError: another thread has them.
        """
        network, thread = id(self.unet), threading.get_ident()  # several `Components` may share a network
        with _LENDING:
            is_inner = network in _LENT  # as an estimate within a run
            if _LENT.setdefault(network, thread) != thread:
                raise InputError("This model is in use by another training: wait for its end, or load the model again.")
        try:
            with lent(self.modules if self.borrowed else []):
                yield
        finally:
            if not is_inner:
                del _LENT[network]

    def use(self, dtype: torch.dtype, storage: Storage) -> None:
        """Record that a run casts UNet and text encoders to `dtype`, their layers by way of `storage`.

        InputError: an earlier run rounded them differently.
        """
        if self.borrowed:  # then nothing stays rounded
            return
        untouched = self.rounded_to is None and self.stored_as == "full"
        if self.rounded_to not in (None, dtype) or not (untouched or self.stored_as == storage):
            raise InputError(
                f"An earlier run has rounded this model to {_rounding(self.rounded_to, self.stored_as)}, and this "
                f"one is to train in {_rounding(dtype, storage)}: load the checkpoint again."
            )
        self.stored_as = storage
        # A wider dtype holds the same values, so what a cast may round is what they came in.
        held = frozenset(parameter.dtype for module in self.modules for parameter in module.parameters())
        self.came_in = self.came_in or held
        if any(loses(one, dtype) for one in self.came_in):
            self.rounded_to = dtype

    @property
    def levels(self) -> Tensor:
        """The noise level of each timestep, float64 (num_timesteps,) in [0, 1], rising."""
        return levels_of(self.schedule)

    @property
    def size_multiple(self) -> int:
        """Pixels that each side must be a multiple of: the VAE's factor times the network's latent multiple."""
        return self.family.vae_factor * self.network.latent_multiple(self.unet)

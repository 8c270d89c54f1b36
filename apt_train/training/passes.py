"""What a term may read of a step: the prior pass and the tuned pass over a batch, and the run's progress.

In: predictions, captured layers and what is derived from them. Not in: the passes themselves (step.py), the terms
(terms.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..config import Layers
from ..data.batch import Batch
from ..families.network import Process
from ..text.conditioning import Conditioning
from .capture import Capture, Captured, attention_maps, recomputed
from .indicator import OverfitIndicator
from .losses import Moments, moments


@runtime_checkable
class Reader(Protocol):
    """A term whose `read` takes all it needs from a pass, so that the prior's captured layers can be freed."""

    @property
    def name(self) -> str: ...

    def read(self, one: Pass) -> Any: ...


@dataclass
class Pass:
    """One forward pass of the network."""

    prediction: Tensor  # float32 (N, C, h, w)
    captured: Captured
    conditioning: Conditioning
    capture: Capture  # the one that recorded this pass
    saves_memory: bool = False  # recompute maps and moments in the backward pass
    readings: dict[str, Any] = field(default_factory=dict[str, Any])  # what terms have already read, by their names

    def read_and_free(self, capturing: Sequence[object]) -> None:
        """Let the terms that need captured layers read them, then free them: they are a hundred times as large.

        They are kept if any of these terms has no `read`.
        """
        self.readings = {term.name: term.read(self) for term in capturing if isinstance(term, Reader)}
        if len(self.readings) == len(capturing):
            self.captured = Captured()

    @property
    def _saves(self) -> bool:
        return self.saves_memory and self.prediction.requires_grad

    def features(self, layers: Layers) -> list[Tensor]:
        """Self-attention outputs (N, positions, channels) of a part of the network."""
        return [kept for name, kept in self.captured.features.items() if name in self.capture.features[layers]]

    def moments(self, layers: Layers) -> list[Moments]:
        """Mean and standard deviation of those features over positions, float32 (N, channels) each."""
        # With float32 features nothing would be saved: autograd would keep only the features, which exist anyway.
        return [
            recomputed(moments, kept) if self._saves and kept.dtype != torch.float32 else moments(kept)
            for kept in self.features(layers)
        ]

    def maps(self, layers: Layers) -> list[Tensor]:
        """Cross-attention maps (N, heads, positions, columns), columns matched by token, of a part of the UNet."""
        text, names = self.conditioning, self.capture.attention[layers]
        return attention_maps(
            self.captured, text.columns, text.num_columns, mask=text.mask, names=names, save_memory=self._saves
        )


@dataclass
class Passes:
    """What a term may read: both passes over a batch, and the run's progress."""

    batch: Batch
    target: Tensor  # what the model should have predicted, (N, C, h, w)
    schedule: Process
    tuned: Pass
    prior: Pass | None  # None: skipped in this step (lazy_prior), or not needed
    indicator: OverfitIndicator  # has already observed this pass
    adapter: Mapping[str, Tensor]  # its weights by name, float32; a term may depend on them alone
    predict: Callable[[list[str], bool], Tensor]  # (captions, tuned?) -> a further pass on the same noisy latents
    done: float | None = 1.0  # see `progress`; None: no setting makes the run depend on its total
    lazy_prior: int = 1  # the prior pass runs in every k-th step

    @property
    def progress(self) -> float:
        """0 in the run's first step, 1 in its last."""
        assert self.done is not None, "a term reads passes.progress: add its setting to reads_total_steps"
        return self.done

    @property
    def gamma(self) -> Tensor:
        """The indicator of each sample's timestep bin, float32 (N,)."""
        return self.indicator.gamma_at(self.batch.timesteps)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio at each sample's timestep, float32 (N,), found by noising a latent and a noise of 1."""
        times = self.batch.timesteps
        one = torch.ones(len(times), 1, 1, 1, device=times.device)
        signal, noise = self.schedule.add_noise(one, 0 * one, times), self.schedule.add_noise(0 * one, one, times)
        return (signal / noise).square().flatten()

    @property
    def compared(self) -> tuple[Pass, Pass]:
        """The tuned pass and the prior's, for a term with `reads_prior`."""
        assert self.prior is not None, "the prior pass did not run"
        return self.tuned, self.prior

    def read_by(self, term: Reader) -> tuple[Any, Any]:
        """A term's readings of the tuned and the prior pass; the latter's may have been taken before it was freed."""
        tuned, prior = self.compared
        return term.read(tuned), prior.readings[term.name] if term.name in prior.readings else term.read(prior)

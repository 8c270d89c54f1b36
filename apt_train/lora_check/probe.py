"""What a LoRA does at one strength, against the prior on the same noise: losses, drift, attention.

All measures are training's own: the indicator's loss gap (`training.indicator`), the drift along the prior's guided
trajectories (`sample.trajectories`), attention over matched columns (`training.capture`). No weight is trained here.

In: one model at one strength -> numbers. Not in: which strengths (`check_up`), what is made of them (`recommend`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..data.batch import Batch, Sample, collate, size_ids_of
from ..data.buckets import Prepared
from ..data.latent_bank import LatentBank
from ..families.components import Components
from ..families.network import TextInput
from ..rng import generator
from ..sample.trajectories import Trajectories, Trajectory, trajectory_calls
from ..text.conditioning import Conditioner
from ..text.tokens import END_LABEL, REST_LABEL, START_LABEL, SUBJECT_LABEL
from ..training.capture import Capture, attention_maps
from ..training.losses import squared_error
from .with_lora import WithLora, check_finite

SEED = 0
_NO_WORDS = {START_LABEL, SUBJECT_LABEL, END_LABEL, REST_LABEL}


@dataclass(frozen=True)
class Pictures:
    """The training pictures as latents, and their captions with `{subject}`."""

    bank: LatentBank
    captions: list[str]
    size_ids: list[list[float]]

    @staticmethod
    def of(prepared: Sequence[Prepared], bank: LatentBank, captions: list[str]) -> Pictures:
        return Pictures(bank, captions, [size_ids_of(item) for item in prepared])


@dataclass(frozen=True)
class Drifts:
    """Mean squared difference of epsilon from the prior, by noise level of the trajectory, float32 (levels,)."""

    subject: Tensor  # the subject's prompts, read with the trigger
    bare: Tensor  # the same prompts, read with the class word alone
    unrelated: Tensor


@dataclass(frozen=True)
class Looks:
    """`alignment`: 1 for the prior's attention, 0 for one that shares no token. `context`: attention on the prompt's
    other words, as a multiple of the prior's."""

    alignment: float
    context: float | None


Guided = tuple[list[str], Trajectory]  # some prompts and the prior's trajectory for them


class Probe:
    """Measures a model at whatever strength it has when it is asked, always on the same noise.

    `prompts`: with `{subject}`, as many as `unrelated` ones. `rows`: samples in one call of the network.
    """

    def __init__(
        self,
        lora: WithLora,
        *,
        pictures: Pictures | None,
        prompts: list[str],
        unrelated: list[str],
        bins: int,
        draws: int,
        side: int,
        rows: int,
    ) -> None:
        self._lora, self._components, self._pictures = lora, lora.components, pictures
        self._bins, self._draws, self._rows = bins, draws, rows
        self._trajectories = Trajectories(self._components, side, lora.device, lora.dtype)
        self._samples = [] if pictures is None else list(_samples(pictures.bank, self._components, bins, draws))
        self._prompts, self._unrelated = prompts, unrelated
        self._named: list[Guided] = []
        self._others: list[Guided] = []
        self.scale: tuple[Tensor, Tensor] | None = None
        """How far the prior itself moves without the prompt, by level: on the subject's prompts, on unrelated ones."""
        network, unet = self._components.network, self._components.unet
        layers = next((part for part in ("up", "all") if network.attention(unet, part)), None)  # type: ignore[arg-type]
        self._capture = None if layers is None else Capture(network, unet, attention=[layers])  # type: ignore[list-item]
        self._maps: list[list[Tensor]] = []

    @property
    def calls(self) -> tuple[int, int]:
        """How often the network is called: for the prior, and at each strength."""
        losses = sum(-(-len(group) // self._rows) for group in self._by_picture())
        batches, (making, measuring) = -(-len(self._prompts) // self._rows), trajectory_calls()
        looks = batches if self._capture else 0
        return losses + 2 * batches * (making + measuring) + looks, losses + 3 * batches * measuring + looks

    @torch.no_grad()
    def begin(self, conditioner: Conditioner) -> None:
        """The prior's own trajectories, and its attention. To be called while the model is the prior."""
        self._named = [self._guided(conditioner, self._prompts, rows) for rows in self._chunked(self._prompts)]
        self._others = [self._guided(conditioner, self._unrelated, rows) for rows in self._chunked(self._unrelated)]
        nothing = [
            self._moved(conditioner, batches, tuned=False, empty=True) for batches in (self._named, self._others)
        ]
        check_finite(torch.cat(nothing), 0)
        self.scale = nothing[0], nothing[1]
        self._maps = [self._maps_of(conditioner, guided, tuned=False)[0] for guided in self._named]

    @torch.no_grad()
    def losses(self, conditioner: Conditioner, strength: float) -> Tensor:
        """Squared error of epsilon on the pictures, float64 (bins, draws x pictures). At strength 0 the prior's."""
        found = torch.zeros(self._bins, len(self._samples) // max(1, self._bins), dtype=torch.float64)
        filled = [0] * self._bins
        for batch, bins in self._batches():
            errors = self._errors(conditioner, batch, tuned=strength > 0)
            check_finite(errors, strength)
            values = cast("list[float]", errors.tolist())
            for level, error in zip(bins, values, strict=True):
                found[level, filled[level]] = error
                filled[level] += 1
        return found

    @torch.no_grad()
    def drifts(self, conditioner: Conditioner, strength: float) -> Drifts:
        """Of the model as it is now. InputError: at this strength it gives no numbers."""
        found = Drifts(
            self._moved(conditioner, self._named, tuned=True),
            self._moved(conditioner, self._named, tuned=False),
            self._moved(conditioner, self._others, tuned=False),
        )
        check_finite(torch.cat([found.subject, found.bare, found.unrelated]), strength)
        return found

    @torch.no_grad()
    def looks(self, conditioner: Conditioner) -> Looks | None:
        """At a middle noise level of the subject's prompts; None: the network has no attention to read."""
        if self._capture is None:
            return None
        apart: list[float] = []
        before: list[float] = []
        after: list[float] = []
        for guided, prior in zip(self._named, self._maps, strict=True):
            tuned, labels = self._maps_of(conditioner, guided, tuned=True)
            for layer, other in zip(tuned, prior, strict=True):
                apart += ((layer - other).abs().sum(dim=-1) / 2).mean(dim=(1, 2)).tolist()
                for row, names in enumerate(labels):
                    words = [column for column, name in enumerate(names) if name not in _NO_WORDS]
                    before.append(float(other[row, :, :, words].sum(dim=-1).mean()))
                    after.append(float(layer[row, :, :, words].sum(dim=-1).mean()))
        context = sum(after) / sum(before) if sum(before) else None
        return Looks(1 - sum(apart) / len(apart), context)

    # -- losses on the pictures

    def _by_picture(self) -> list[list[tuple[Sample, int]]]:
        return [list(group) for _, group in itertools.groupby(self._samples, key=lambda pair: pair[0].image)]

    def _batches(self) -> Iterator[tuple[Batch, list[int]]]:
        if self._pictures is None:
            return
        for group in self._by_picture():
            for chunk in (group[k : k + self._rows] for k in range(0, len(group), self._rows)):
                samples, bins = [sample for sample, _ in chunk], [level for _, level in chunk]
                yield collate(samples, self._pictures.captions, self._pictures.size_ids, self._lora.device), bins

    def _errors(self, conditioner: Conditioner, batch: Batch, *, tuned: bool) -> Tensor:
        """float32 (N,), unweighted and unmasked, as the indicator takes them."""
        schedule, text = self._components.schedule, conditioner.encode(batch.captions, tuned=tuned)
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        read = TextInput(text.hidden, text.pooled, batch.size_ids)
        network, dtype = self._components.network, self._lora.dtype
        prediction = network.predict(self._components.unet, noisy, batch.timesteps, read, dtype)
        return squared_error(schedule.to_epsilon(prediction, noisy, batch.timesteps), batch.noise).cpu()

    # -- drift

    def _chunked(self, texts: list[str]) -> list[list[int]]:
        return [list(range(len(texts)))[k : k + self._rows] for k in range(0, len(texts), self._rows)]

    def _guided(self, conditioner: Conditioner, prompts: list[str], rows: list[int]) -> Guided:
        texts = [prompts[k] for k in rows]
        return texts, self._trajectories.of(conditioner, texts, rows)

    def _moved(self, conditioner: Conditioner, batches: list[Guided], *, tuned: bool, empty: bool = False) -> Tensor:
        """Mean squared difference from the prior at each point, float32 (points,)."""
        read = [([""] * len(texts) if empty else texts, trajectory) for texts, trajectory in batches]
        found = [self._trajectories.moved(conditioner, trajectory, texts, tuned=tuned) for texts, trajectory in read]
        return torch.cat(found, dim=1).mean(dim=1)

    # -- attention

    def _maps_of(
        self, conditioner: Conditioner, guided: Guided, *, tuned: bool
    ) -> tuple[list[Tensor], list[list[str]]]:
        """Maps (N, heads, positions, columns) by layer on the CPU, and the columns' labels of each prompt."""
        if self._capture is None:
            return [], []
        texts, trajectory = guided
        time, noisy, _ = trajectory[len(trajectory) // 2]
        text = conditioner.encode(texts, tuned=tuned)
        with self._capture.record() as captured:
            self._trajectories.predictor(conditioner, texts, tuned=tuned)(noisy.to(self._lora.device), time)
        maps = attention_maps(captured, text.columns, text.num_columns)
        return [layer.cpu() for layer in maps], text.labels


def _samples(bank: LatentBank, components: Components, bins: int, draws: int) -> Iterator[tuple[Sample, int]]:
    """Per picture `draws` noises in each bin, at timesteps spread evenly in it, with the bin."""
    total, pictures = components.schedule.num_timesteps, sum(len(group) for group in bank.buckets.values())
    for image, level, draw in itertools.product(range(pictures), range(bins), range(draws)):
        timestep = int((level + (draw + 0.5) / draws) / bins * total)
        posterior, noise = torch.randn(
            2, *bank.latent_shape(image), generator=generator(SEED, "check-up", image, level, draw)
        )
        yield Sample(timestep, image, 0, bank.latent(image, 0, posterior), noise, None), level

"""How well the model predicts the training pictures, always on the same noise: the indicator's losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ..data.batch import Batch, collate
from ..families.network import TextInput
from ..sample.sampler import Sampler
from ..text.conditioning import Conditioner
from ..training.losses import squared_error
from .asked import Asked
from .pictures import Pictures
from .with_lora import check_finite


class Losses:
    """Losses at any strength; without pictures they are empty, (bins, 0)."""

    def __init__(self, sampler: Sampler, pictures: Pictures | None, asked: Asked) -> None:
        self.sampler, self._pictures, self._bins = sampler, pictures, asked.bins
        self._samples = [] if pictures is None else pictures.samples(asked, sampler.components.levels)

    @property
    def calls(self) -> int:
        """The number of network calls of `at`."""
        return sum(len(self.sampler.batches(len(group))) for group in self._samples)

    @torch.no_grad()
    def at(self, strength: float, conditioner: Conditioner) -> Tensor:
        """Squared errors of epsilon, float64 (bins, draws x pictures); at strength 0 the prior's."""
        found = torch.zeros(self._bins, sum(map(len, self._samples)) // self._bins, dtype=torch.float64)
        filled = [0] * self._bins
        for batch, bins in self._batches():
            errors = self._errors(conditioner, batch, tuned=strength > 0)
            check_finite(errors, strength)
            for level, error in zip(bins, cast("list[float]", errors.tolist()), strict=True):
                found[level, filled[level]] = error
                filled[level] += 1
        return found

    def _batches(self) -> Iterator[tuple[Batch, Sequence[int]]]:
        """Batches that each show one picture, with the bin of each sample."""
        if self._pictures is None:
            return
        device = torch.device(self.sampler.device)
        for group in self._samples:
            for rows in self.sampler.batches(len(group)):
                samples, bins = zip(*(group[k] for k in rows), strict=True)
                yield collate(samples, self._pictures.captions, device), bins

    def _errors(self, conditioner: Conditioner, batch: Batch, *, tuned: bool) -> Tensor:
        """Float32 (N,), unweighted and unmasked, as the indicator observes them."""
        components, text = self.sampler.components, conditioner.encode(batch.captions, tuned=tuned)
        schedule = components.schedule
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        read = TextInput(text.hidden, text.pooled, batch.size_ids, mask=text.mask)
        prediction = components.network.predict(components.unet, noisy, batch.timesteps, read, self.sampler.dtype)
        return squared_error(schedule.to_epsilon(prediction, noisy, batch.timesteps), batch.noise).cpu()

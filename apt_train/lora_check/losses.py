"""How well the model predicts the training pictures, always on the same noise: the indicator's losses."""

from __future__ import annotations

from collections.abc import Iterator

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

    def __init__(self, sampler: Sampler, pictures: Pictures, asked: Asked) -> None:
        self.sampler, self._each, self._pictures = sampler, (asked.bins, asked.draws), pictures

    @property
    def calls(self) -> int:
        """The number of network calls of `at`."""
        return sum(len(self.sampler.batches(len(group))) for group in self._pictures.samples)

    @torch.no_grad()
    def at(self, strength: float, conditioner: Conditioner) -> Tensor:
        """Squared errors of epsilon, float64 (bins, draws x pictures); at strength 0 the prior's."""
        errors = [torch.zeros(0)]
        for batch in self._batches():
            errors.append(self._errors(conditioner, batch, tuned=strength > 0))
            check_finite(errors[-1], strength)
        return torch.cat(errors).double().view(-1, *self._each).transpose(0, 1).flatten(1)

    def _batches(self) -> Iterator[Batch]:
        """Batches that each show one picture, in the order of the samples."""
        device = torch.device(self.sampler.device)
        for group in self._pictures.samples:
            for rows in self.sampler.batches(len(group)):
                yield collate([group[k] for k in rows], self._pictures.captions, device)

    def _errors(self, conditioner: Conditioner, batch: Batch, *, tuned: bool) -> Tensor:
        """Float32 (N,), unweighted and unmasked, as the indicator observes them."""
        components, text = self.sampler.components, conditioner.encode(batch.captions, tuned=tuned)
        schedule = components.schedule
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        read = TextInput(text.hidden, text.pooled, batch.size_ids, mask=text.mask)
        prediction = components.network.predict(components.unet, noisy, batch.timesteps, read, self.sampler.dtype)
        return squared_error(schedule.to_epsilon(prediction, noisy, batch.timesteps), batch.noise).cpu()

"""The prior's own trajectories from noise to picture, and how far a model's predictions differ along them.

Ours. This is how drift is measured, in training (`drift`) and for any LoRA (`lora_check.drift`). No pictures are
needed.

In: the trajectories, and the difference at each of their points. Not in: which model is compared, and what the numbers
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text.conditioning import Conditioner
from .sampler import Predict, Sampler, denoise, initial_noise, latent_shape

# For N prompts, per point: its timestep, the noisy latents and the prior's epsilon, (N, C, h, w).
Trajectory = list[tuple[int, Tensor, Tensor]]
Trail = tuple[range, Trajectory]  # which prompts of a list, as many as fit one call, and their trajectory

SEED, GUIDANCE = 0, 5.0
STEPS, EVERY = 10, 2  # steps of a trajectory, and every which of them is measured; the last, almost clean, is not


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of a model in its current state, at the size and on the device of its sampler."""

    sampler: Sampler

    def calls(self, count: int) -> tuple[int, int]:
        """The number of network calls to make the trajectories of `count` prompts, and to measure them once."""
        batches, points = len(self.sampler.batches(count)), len(range(0, STEPS, EVERY))
        return batches * (STEPS + points), batches * points

    def of(self, conditioner: Conditioner, texts: list[str], noises: int) -> list[Trail]:
        """The guided trajectories of these prompts, kept on the CPU; prompt k starts from noise k modulo `noises`.

        Call it while the model is the prior.
        """
        return [
            (rows, self._along(conditioner, [texts[k] for k in rows], [k % noises for k in rows]))
            for rows in self.sampler.batches(len(texts))
        ]

    def _along(self, conditioner: Conditioner, texts: list[str], noises: list[int]) -> Trajectory:
        components = self.sampler.components
        shape, schedule = latent_shape(components, *self.sampler.size), components.schedule
        noise = torch.stack([initial_noise(SEED, k, shape) for k in noises]).to(self.sampler.device)
        text, nothing = conditioner.encode(texts, tuned=False), conditioner.encode([""], tuned=False)
        steered, plain = self.sampler.predictor(text, nothing, GUIDANCE), self.sampler.predictor(text)
        times = schedule.sampling_timesteps(STEPS)
        seen: list[Tensor] = []

        def watched(latents: Tensor, timestep: int) -> Tensor:
            seen.append(latents.cpu())
            return steered(latents, timestep)

        denoise(schedule, watched, noise, times)
        points = list(zip(times, seen, strict=True))[::EVERY]
        return [(time, noisy, self._epsilon(plain, noisy, time)) for time, noisy in points]

    def moved(self, conditioner: Conditioner, trails: Sequence[Trail], texts: list[str], *, tuned: bool) -> Tensor:
        """Squared difference at each point of each prompt's trajectory, float32 (points, N). `texts`: the prompts."""
        found: list[Tensor] = []
        for rows, trajectory in trails:
            predict = self.sampler.predictor(conditioner.encode([texts[k] for k in rows], tuned=tuned))
            apart = [self._epsilon(predict, noisy, time) - prior for time, noisy, prior in trajectory]
            found.append(torch.stack([difference.square().mean(dim=(1, 2, 3)) for difference in apart]))
        return torch.cat(found, dim=1)

    def _epsilon(self, predict: Predict, noisy: Tensor, time: int) -> Tensor:
        """The noise that the prediction implies, float32 on the CPU."""
        latents = noisy.to(self.sampler.device)
        times = torch.full((len(latents),), time, device=self.sampler.device)
        schedule = self.sampler.components.schedule
        return schedule.to_epsilon(predict(latents, time), latents, times).float().cpu()

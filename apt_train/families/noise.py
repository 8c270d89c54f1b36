"""The noise schedule: noisy latents, training targets, and the epsilon that any prediction implies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .network import require_sampling_steps
from .swapped import sent

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving schedule: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.

    `alphas_cumprod`: float (num_timesteps,), each in [0, 1], descending; the last is 0 with zero terminal SNR.
    """

    alphas_cumprod: Tensor
    prediction: PredictionType = "epsilon"

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def fingerprint(self) -> bytes:
        return self.alphas_cumprod.cpu().float().numpy().tobytes()

    def level(self, timesteps: Tensor) -> Tensor:
        """The fraction of the schedule below this timestep, float32 in [0, 1)."""
        return timesteps.float() / self.num_timesteps

    def draw(self, draws: torch.Generator) -> int:
        """Uniform over all timesteps, as Stable Diffusion was trained."""
        return int(torch.randint(self.num_timesteps, (1,), generator=draws))

    @property
    def zero_terminal_snr(self) -> bool:
        return bool(self.alphas_cumprod[-1] <= 1e-7)

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar), sqrt(1 - alpha_bar) as float32 (N, 1, 1, 1) for int64 timesteps (N,)."""
        alpha_bar = sent(self.alphas_cumprod, timesteps.device)[timesteps].float().view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents; all (N, C, H, W), timesteps int64 (N,)."""
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet is trained to predict: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * noise - sigma * latents

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a prediction implies, so that eps- and v-models feed the indicator alike (ours)."""
        if self.prediction == "epsilon":
            return prediction
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * prediction + sigma * noisy

    def sampling_timesteps(self, steps: int) -> list[int]:
        """The timesteps visited, descending.

        Like Stable Diffusion's own: evenly spaced from below with offset 1 ("leading"). A zero-terminal-SNR v-model
        starts from pure noise instead ("trailing", arXiv 2305.08891). An epsilon model does not, because its prediction
        carries no information at pure noise.
        """
        total = self.num_timesteps
        require_sampling_steps(steps, total)
        if self.zero_terminal_snr and self.prediction == "v_prediction":
            return [round(total - i * total / steps) - 1 for i in range(steps)]
        return [min(i * (total // steps) + 1, total - 1) for i in reversed(range(steps))]

    def step(self, latents: Tensor, prediction: Tensor, now: int, then: int | None) -> Tensor:
        """Deterministic DDIM (arXiv 2010.02502, eta 0). It ends at alpha_bar_0, as Stable Diffusion does."""
        here, there = (torch.full((len(latents),), t, device=latents.device) for t in (now, then or 0))
        signal, sigma = self.signal_and_noise(here)
        if self.prediction == "epsilon":
            clean = (latents - sigma * prediction) / signal
        else:
            clean = signal * latents - sigma * prediction
        return self.add_noise(clean, self.to_epsilon(prediction, latents, here), there)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its first entry is unchanged and its last is 0 (arXiv 2305.08891)."""
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2

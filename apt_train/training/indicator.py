"""The overfitting indicator: per bin of the noise level, how far the tuned model's loss has fallen below the prior's.

In: bins, moving averages, gamma. Not in: the uses of gamma (augmentation in update.py, loss weight in terms.py).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..families.levels import even_levels, parts_of
from ..families.precision import holds

AUTO_SCALE = 5.0
"""For "auto": gamma = 1 - exp(-5 * relative gap), so 0.39 if the tuned loss is 10% below the prior's (ours)."""


class OverfitIndicator:
    """gamma_b = 1 - exp(-T * (EMA_b[prior loss] - EMA_b[tuned loss])), clamped to [0, 1].

    Losses are mean squared errors of epsilon, per sample. Ten bins: paper. EMA weight 0.1 and T = 1000: reported. Ours:
    the clamp, each EMA starting at its bin's first value, gamma 0 before that, and one update per optimizer step.

    `temperature="auto"` divides the gap by the prior's own moving average in the bin, so that gamma does not depend on
    the scale of the loss (ours).

    An optimizer step may call `observe` several times (accumulated batches). gamma reflects each call at once, and
    `commit` turns them into one update.
    """

    def __init__(
        self,
        bins: int = 10,
        ema: float = 0.1,
        temperature: float | Literal["auto"] = 1000.0,
        num_timesteps: int = 1000,
        device: torch.device | str = "cpu",
        levels: Tensor | None = None,
    ) -> None:
        """`device`: where the losses are computed, so that a step never waits for a transfer.

        `levels`: the noise level of each timestep, float64 (num_timesteps,) in [0, 1]; None: t / num_timesteps. The
        bins are equal parts of the noise level.
        """
        self._device = torch.device(device)
        if not holds(self._device, torch.float64):
            self._device = torch.device("cpu")
        self.bins, self.ema, self.temperature, self.num_timesteps = bins, ema, temperature, num_timesteps
        self._bin_of = parts_of(even_levels(num_timesteps) if levels is None else levels, bins).to(self._device)
        self._average = torch.zeros(2, bins, dtype=torch.float64, device=self._device)  # prior, tuned
        self._seen = torch.zeros(bins, dtype=torch.bool, device=self._device)
        self.discard()

    def bin_of(self, timesteps: Tensor) -> Tensor:
        """The bin index, int64 (N,), of int64 timesteps (N,)."""
        return self._bin_of[timesteps.to(self._device)]

    def observe(self, timesteps: Tensor, prior_loss: Tensor, tuned_loss: Tensor) -> None:
        """Record per-sample losses (N,) from one part of an optimizer step."""
        bins = self.bin_of(timesteps)
        losses = torch.stack([prior_loss.detach(), tuned_loss.detach()]).to(self._device).double()
        self._moved = None
        self._pending_sum.index_add_(1, bins, losses)
        self._pending_count.index_add_(0, bins, torch.ones_like(losses[0]))

    def commit(self) -> None:
        """Turn the observations into one update: each bin moves once, by the mean of its samples."""
        self._average, self._seen = self._provisional()
        self.discard()

    def update(self, timesteps: Tensor, prior_loss: Tensor, tuned_loss: Tensor) -> None:
        """`observe` and `commit`: timesteps int64 (N,), losses float (N,)."""
        self.observe(timesteps, prior_loss, tuned_loss)
        self.commit()

    @property
    def averages(self) -> Tensor:
        """The prior's and the tuned model's mean losses, float64 (2, bins); 0 in a bin not seen yet."""
        return self._provisional()[0]

    @property
    def gamma(self) -> Tensor:
        """One value in [0, 1] per bin: float64 (bins,) on the indicator's device."""
        (prior, tuned), seen = self._provisional()
        gap = (prior - tuned).clamp(min=0)
        if isinstance(self.temperature, str):
            exponent = AUTO_SCALE * gap / prior.clamp(min=1e-12)
        else:
            exponent = self.temperature * gap
        return torch.where(seen, -torch.expm1(-exponent), 0.0).clamp(0, 1)

    def gamma_at(self, timesteps: Tensor) -> Tensor:
        """gamma of each timestep's bin, float32 (N,) on the timesteps' device."""
        return self.gamma[self.bin_of(timesteps)].float().to(timesteps.device)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; JSON stores float64 exactly."""
        return {"average": self._average.tolist(), "seen": self._seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        average = torch.tensor(state["average"], dtype=torch.float64, device=self._device)
        if average.shape != self._average.shape:
            raise ValueError(
                f"the number of bins is {self.bins}, in the saved indicator {average.shape[-1]}: use the saved number."
            )
        self._average = average
        self._seen = torch.tensor(state["seen"], dtype=torch.bool, device=self._device)
        self.discard()

    def _provisional(self) -> tuple[Tensor, Tensor]:
        """The averages as if the pending observations were committed; cached, as a step asks several times."""
        if self._moved is None:
            fresh = self._pending_count > 0
            mean = self._pending_sum / self._pending_count.clamp(min=1)
            moved = self._average + self.ema * (mean - self._average)
            average = torch.where(fresh, torch.where(self._seen, moved, mean), self._average)
            self._moved = average, self._seen | fresh
        return self._moved

    def discard(self) -> None:
        """Forget what was observed since the last commit."""
        self._moved: tuple[Tensor, Tensor] | None = None
        self._pending_sum = torch.zeros(2, self.bins, dtype=torch.float64, device=self._device)
        self._pending_count = torch.zeros(self.bins, dtype=torch.float64, device=self._device)

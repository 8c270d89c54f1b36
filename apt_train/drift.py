"""How far the tuned model has left the prior: on the subject's own prompt, and on prompts without the subject.

Ours. Both models predict the noise along the prior's own guided trajectories; drift is the mean squared difference of
the two. Learning a subject moves the model on the subject's prompt, overfitting moves it everywhere, so the *ratio* of
the two is what to watch (docs/benchmark.md says what it is worth); it has no scale of its own. No picture is needed.

In: the measure. Not in: when it is taken (`loop`), what is made of it (`report`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import adapter_disabled
from .components import Components
from .conditioning import Conditioner
from .sample import ddim, eval_mode, guided_unet, initial_noise, latent_shape, sampling_timesteps

Predict = Callable[[Tensor, int | Tensor], Tensor]  # (noisy latents, timestep) -> the model's own prediction

SEED, GUIDANCE = 0, 5.0
STEPS, EVERY = 10, 2  # of the trajectories, and which of their points are measured


@dataclass(frozen=True)
class Drift:
    """Mean squared difference of epsilon, tuned less prior, on each kind of prompt."""

    subject: float
    unrelated: float

    @property
    def ratio(self) -> float:
        """Unrelated over subject; 0 where nothing has moved at all."""
        return self.unrelated / self.subject if self.subject > 0 else (math.inf if self.unrelated > 0 else 0.0)


def unrelated_prompts(prompts: tuple[str, ...], class_word: str) -> list[str]:
    """Those that do not name the class, in any case, as whole words."""
    named = re.compile(rf"(?<!\w){re.escape(class_word.strip())}(?!\w)", re.IGNORECASE)
    return [prompt for prompt in prompts if not named.search(prompt)]


@dataclass(frozen=True)
class _Path:
    """Some prompts' trajectories: by point its timestep, noisy latents and the prior's epsilon, both (N, C, h, w)."""

    texts: list[str]
    points: list[tuple[int, Tensor, Tensor]]


class DriftWatch:
    """Measures the adapter as it stands, always on the same trajectories.

    They start from fixed noise, one trajectory per unrelated prompt and as many of the subject's caption (`{subject}`
    in it), `side` pixels square, `rows` in one UNet call. They are the prior's, made at the first `measure` and kept on
    the CPU: two latents a point.
    """

    def __init__(
        self,
        components: Components,
        conditioner: Conditioner,
        caption: str,
        unrelated: list[str],
        *,
        side: int,
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert unrelated, "no prompts to measure on"
        self._components, self._conditioner = components, conditioner
        self._texts = [caption] * len(unrelated) + unrelated
        self._side, self._rows, self._device, self._dtype = side, rows, device, dtype
        self._paths: list[_Path] = []

    @torch.no_grad()
    def measure(self) -> Drift:
        """Of the adapter and the identifier as they are now; weights, modes and random draws stay as they are."""
        with eval_mode(self._components.unet):
            if not self._paths:
                with adapter_disabled(self._components.unet):
                    self._paths = [self._path(slice(k, k + self._rows)) for k in range(0, len(self._texts), self._rows)]
            moved = torch.cat([self._moved(path) for path in self._paths])
        half = len(moved) // 2
        return Drift(subject=float(moved[:half].mean()), unrelated=float(moved[half:].mean()))

    def _path(self, rows: slice) -> _Path:
        """The prior's way from noise to picture for some of the prompts, and what it predicts there."""
        texts, schedule = self._texts[rows], self._components.schedule
        first = range(len(self._texts))[rows]
        half = len(self._texts) // 2
        shape = latent_shape(self._components, self._side, self._side)
        noise = torch.stack([initial_noise(SEED, k % half, shape) for k in first]).to(self._device)
        guided = self._predictor(texts, tuned=False, guidance=GUIDANCE)
        times = sampling_timesteps(schedule, STEPS)
        seen: list[Tensor] = []

        def watched(latents: Tensor, timestep: int) -> Tensor:
            seen.append(latents.cpu())
            return guided(latents, timestep)

        ddim(schedule, watched, noise, times)
        points = list(zip(times, seen, strict=True))[EVERY - 1 :: EVERY]
        plain = self._predictor(texts, tuned=False)
        return _Path(texts, [(time, noisy, self._epsilon(plain, noisy, time)) for time, noisy in points])

    def _moved(self, path: _Path) -> Tensor:
        """Squared difference per prompt, the mean over its trajectory, float32 (N,)."""
        predict = self._predictor(path.texts, tuned=True)
        return torch.stack(
            [
                (self._epsilon(predict, noisy, time) - prior).square().mean(dim=(1, 2, 3))
                for time, noisy, prior in path.points
            ]
        ).mean(dim=0)

    def _predictor(self, texts: list[str], *, tuned: bool, guidance: float = 1.0) -> Predict:
        text = self._conditioner.encode(texts, tuned=tuned)
        empty = self._conditioner.encode([""], tuned=False)
        size, rows = (self._side, self._side), range(len(texts))
        return guided_unet(self._components, text, empty, rows, guidance, size, self._device, self._dtype)

    def _epsilon(self, predict: Predict, noisy: Tensor, time: int) -> Tensor:
        """The noise that the prediction stands for, float32 on the CPU."""
        latents = noisy.to(self._device)
        times = torch.full((len(latents),), time, device=self._device)
        return self._components.schedule.to_epsilon(predict(latents, time), latents, times).float().cpu()

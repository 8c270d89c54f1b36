"""How far the tuned model has moved from the prior: on the subject's own captions, and on prompts without the subject.

Ours. Both models predict the noise along the prior's own guided trajectories; drift is the mean squared difference of
the two. Learning a subject moves the model on the subject's captions; overfitting moves it everywhere. So watch how the
*ratio* of the two changes (docs/benchmark.md measures its worth). Its level depends on the prompts. No pictures are
needed.

In: the measure. Not in: the trajectories and differences (`trajectories`), when it is measured (`training.watching`),
what it means (`verdict`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import Adapter
from ..text.captions import SUBJECT, words_pattern
from ..text.conditioning import Conditioner
from .sampler import Sampler, eval_mode
from .trajectories import Trail, Trajectories


@dataclass(frozen=True)
class Drift:
    """Mean squared difference of epsilon between tuned and prior, on each kind of prompt.

    `ratio`: unrelated over subject at each noise level, averaged over the levels where the subject's has moved; 0 if
    none has. It is taken per level because drift at low noise is many times that at high noise. In bfloat16, rounding
    adds about 1e-5 to both as soon as the adapter has moved, which at first pulls the ratio towards 1.
    """

    subject: float
    unrelated: float
    ratio: float


def drift_of(subject: Tensor, unrelated: Tensor) -> Drift:
    """The drift from the mean squared differences at each noise level, both (P,)."""
    return Drift(float(subject.mean()), float(unrelated.mean()), share_of(unrelated, subject))


def share_of(part: Tensor, whole: Tensor) -> float:
    """part / whole at each noise level, both (P,), averaged over the levels where the whole is not 0; 0: nowhere.

    At pure noise it always is, for a flow or zero terminal SNR: the latent is the noise, whatever is predicted.
    """
    moved = whole > 0
    return float((part[moved] / whole[moved]).mean()) if bool(moved.any()) else 0.0


def unrelated_prompts(prompts: tuple[str, ...], class_word: str) -> list[str]:
    """The prompts that do not contain the class word, as a whole word or plain plural, ignoring case."""
    named = re.compile(rf"(?<!\w){words_pattern(class_word)}(?:e?s)?(?!\w)", re.IGNORECASE)
    return [prompt for prompt in prompts if not named.search(prompt)]


def as_many(texts: Iterable[str], count: int) -> list[str]:
    """`count` texts: these, without repeats, as often as it takes."""
    return list(itertools.islice(itertools.cycle(dict.fromkeys(texts)), count))


class DriftWatch:
    """Measures the current adapter, always on the same trajectories.

    `captions`: of the subject, with `{subject}`, as many as the `unrelated` prompts. `words`: what stood for the
    subject before the first step, so that an untrained model has zero drift however it was initialised. Each
    trajectory starts from fixed noise; one UNet call takes a sampler batch of prompts (guided ones count twice). The
    trajectories are the prior's, made at the first `measure` and kept on the CPU: two latents per point.
    """

    def __init__(
        self,
        sampler: Sampler,
        adapter: Adapter,
        conditioner: Conditioner,
        captions: list[str],
        words: str,
        unrelated: list[str],
    ) -> None:
        assert len(captions) == len(unrelated) > 0, "as many of both kinds"
        self._sampler, self._adapter, self._conditioner = sampler, adapter, conditioner
        self._tuned = captions + unrelated
        self._prior = [caption.replace(SUBJECT, words) for caption in captions] + unrelated
        self.texts = [*self._tuned, *self._prior, ""]  # all that it encodes
        self._trajectories = Trajectories(sampler)
        self._made: list[Trail] = []

    @property
    def calls(self) -> int:
        """The number of UNet calls of the next `measure`; the first one also makes the prior's trajectories."""
        making, measuring = self._trajectories.calls(len(self._tuned))
        return measuring if self._made else making + measuring

    @torch.no_grad()
    def measure(self) -> Drift:
        """The current drift; weights, modes and random states are left unchanged."""
        noises = len(self._prior) // 2  # the same for subject and unrelated prompts
        with eval_mode(self._sampler.components.unet):
            if not self._made:
                with self._adapter.disabled():
                    self._made = self._trajectories.of(self._conditioner, self._prior, noises)
            moved = self._trajectories.moved(self._conditioner, self._made, self._tuned, tuned=True)
        subject, unrelated = (part.mean(dim=1) for part in moved.chunk(2, dim=1))
        return drift_of(subject, unrelated)

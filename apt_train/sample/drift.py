"""How far the tuned model has left the prior: on the subject's own captions, and on prompts without the subject.

Ours. Both models predict the noise along the prior's own guided trajectories; drift is the mean squared difference of
the two. Learning a subject moves the model on the subject's captions, overfitting moves it everywhere, so the *ratio*
of the two is what to watch as it changes (docs/benchmark.md says what it is worth). Its level depends on the prompts.
No picture is needed.

In: the measure. Not in: the trajectories and the differences (`trajectories`), when it is taken (`loop`), what is made
of it (`report`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import Adapter
from ..text.captions import SUBJECT
from ..text.conditioning import Conditioner
from .sampler import Sampler, eval_mode
from .trajectories import Trajectories, Trajectory, trajectory_calls


@dataclass(frozen=True)
class Drift:
    """Mean squared difference of epsilon, tuned less prior, on each kind of prompt.

    `ratio`: unrelated over subject at each noise level, the mean over those where the subject's has moved; 0 where none
    has. By levels because the drift at low noise is many times that at high noise. In bfloat16 rounding adds some 1e-5
    to either once the adapter has moved at all, which pulls the ratio towards 1 while it has moved little.
    """

    subject: float
    unrelated: float
    ratio: float


def drift_of(subject: Tensor, unrelated: Tensor) -> Drift:
    """From the mean squared differences at each noise level, both (P,)."""
    moved = subject > 0
    ratio = float((unrelated[moved] / subject[moved]).mean()) if bool(moved.any()) else 0.0
    return Drift(float(subject.mean()), float(unrelated.mean()), ratio)


def unrelated_prompts(prompts: tuple[str, ...], class_word: str) -> list[str]:
    """Those that do not name the class, in any case, as whole words, also in a plain plural."""
    named = re.compile(rf"(?<!\w){re.escape(class_word.strip())}(?:e?s)?(?!\w)", re.IGNORECASE)
    return [prompt for prompt in prompts if not named.search(prompt)]


class DriftWatch:
    """Measures the adapter as it stands, always on the same trajectories.

    `captions`: of the subject (`{subject}` in them), as many as there are `unrelated` prompts; `words`: what stood for
    the subject before the first step, so that an untrained model has not drifted whatever it was initialised with. Each
    trajectory starts from fixed noise, the sampler's batch of prompts in one UNet call (guided ones count twice).
    They are the prior's, made at the first `measure` and kept on the CPU: two latents a point.
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
        self._trajectories, self._rows = Trajectories(sampler), sampler.batch_size
        self._made: list[tuple[range, Trajectory]] = []

    @property
    def texts(self) -> list[str]:
        """All that it encodes."""
        return [*self._tuned, *self._prior, ""]

    @property
    def calls(self) -> int:
        """How often the next `measure` calls the UNet: the first time for the prior's trajectories and points, too."""
        making, measuring = trajectory_calls()
        batches = len(range(0, len(self._tuned), self._rows))
        return batches * (measuring if self._made else making + measuring)

    @torch.no_grad()
    def measure(self) -> Drift:
        """Of the adapter and the identifier as they are now; weights, modes and random draws stay as they are."""
        total = len(self._tuned)
        with eval_mode(self._sampler.components.unet):
            if not self._made:
                with self._adapter.disabled():
                    self._made = [self._make(range(total)[k : k + self._rows]) for k in range(0, total, self._rows)]
            moved = torch.cat([self._moved(rows, trajectory) for rows, trajectory in self._made], dim=1)
        subject, unrelated = (part.mean(dim=1) for part in moved.chunk(2, dim=1))
        return drift_of(subject, unrelated)

    def _make(self, rows: range) -> tuple[range, Trajectory]:
        """Some of the prompts with the prior's trajectory; the subject's and the others start from the same noises."""
        half = len(self._prior) // 2
        return rows, self._trajectories.of(self._conditioner, [self._prior[k] for k in rows], [k % half for k in rows])

    def _moved(self, rows: range, trajectory: Trajectory) -> Tensor:
        return self._trajectories.moved(self._conditioner, trajectory, [self._tuned[k] for k in rows], tuned=True)

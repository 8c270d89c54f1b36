"""One training step: prior pass, tuned pass, losses, indicator, weighted total.

In: everything between a drawn batch and the loss that `backward` is called on. Not in: drawing (batch.py), the
optimizer (update.py), everything that outlives a step (setup.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..adapter import Adapter
from ..data.batch import Batch
from ..families.components import Components
from ..families.network import TextInput
from ..text.conditioning import Conditioner, Conditioning
from .capture import Capture, Captured
from .indicator import OverfitIndicator
from .losses import squared_error
from .objective import Objective
from .passes import Pass, Passes


@dataclass
class StepOutput:
    """Scalars of one pass, by term: `raw` as logged, `weighted` as they enter the total."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]
    prior_error: Tensor | None = None  # the prior's mean epsilon error; None: no prior pass


@dataclass
class TrainingStep:
    """The step of one run: call it with a batch, then call `backward` on `total`."""

    components: Components
    adapter: Adapter
    conditioner: Conditioner
    indicator: OverfitIndicator
    objective: Objective
    dtype: torch.dtype = torch.float32
    save_memory: bool = False
    chunks: int = 1  # 77-token chunks that every caption is padded to, so results do not depend on batching

    def __post_init__(self) -> None:
        self.schedule = self.components.schedule
        self.capturing = [term for term in self.objective.terms if term.features or term.attention]
        self.capture = Capture(
            self.components.network,
            self.components.unet,
            features=[term.features for term in self.capturing if term.features],
            attention=[term.attention for term in self.capturing if term.attention],
        )

    def __call__(self, batch: Batch, *, with_prior: bool, progress: float | None = 1.0) -> StepOutput:
        """The loss of a batch. `with_prior`: run the prior pass and what needs it; `progress`: 0 to 1 over the run.

        None: no term may read it.
        """
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)

        # The prior: class caption [reported]; adapter off, no gradient [ours; the paper keeps a frozen copy].
        prior = self._prior_pass(noisy, batch) if with_prior else None
        acting = [term for term in self.objective.terms if with_prior or not term.reads_prior]
        captured = any(term.features or term.attention for term in acting)
        tuned = self._pass(noisy, batch, tuned=True, captured=captured)

        # The indicator observes this pass before the weight is computed [reported].
        error = None if prior is None else self._observe(prior.prediction, tuned.prediction, noisy, batch)

        # L = (1 - gamma) L_DM + dist_weight (L_mu + L_sigma) + attn_weight L_attn [reported].
        passes = Passes(
            batch, target, self.schedule, tuned=tuned, prior=prior, indicator=self.indicator,
            adapter=self.adapter.parameters, predict=partial(self._again, noisy, batch),
            done=progress, lazy_prior=self.objective.lazy_prior,
        )  # fmt: skip
        values = {term.name: term(passes) for term in acting}
        weighted = {name: value for name, (_, value) in values.items()}
        total = torch.stack(list(weighted.values())).sum() if len(weighted) > 1 else next(iter(weighted.values()))
        return StepOutput(total, {name: raw for name, (raw, _) in values.items()}, weighted, error)

    def preservation(self, batch: Batch) -> Tensor:
        """Plain denoising loss on prior-preservation pictures with class captions (DreamBooth's second term)."""
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)
        conditioning = self.conditioner.encode(batch.captions, tuned=False, chunks=self.chunks)
        return squared_error(self.predict(noisy, batch, conditioning), target, batch.mask).mean()

    # -- the two passes

    def _prior_pass(self, noisy: Tensor, batch: Batch) -> Pass:
        with torch.no_grad(), self.adapter.disabled():
            prior = self._pass(noisy, batch, tuned=False, captured=True)
            prior.read_and_free(self.capturing)
        return prior

    def _pass(self, noisy: Tensor, batch: Batch, *, tuned: bool, captured: bool) -> Pass:
        conditioning = self.conditioner.encode(batch.captions, tuned=tuned, chunks=self.chunks)
        with self.capture.record() if captured else nullcontext(Captured()) as record:
            prediction = self.predict(noisy, batch, conditioning)
        return Pass(prediction, record, conditioning, self.capture, self.save_memory)

    def _again(self, noisy: Tensor, batch: Batch, captions: list[str], tuned: bool) -> Tensor:
        """A further prediction, for a term that reads other captions; the prior's has no gradient."""
        other = replace(batch, captions=captions)
        if tuned:
            return self._pass(noisy, other, tuned=True, captured=False).prediction
        with torch.no_grad(), self.adapter.disabled():
            return self._pass(noisy, other, tuned=False, captured=False).prediction

    def predict(self, noisy: Tensor, batch: Batch, conditioning: Conditioning) -> Tensor:
        """The network's prediction, float32 (N, C, h, w), computed in `dtype`, with the adapter on or off as it is."""
        text = TextInput(conditioning.hidden, conditioning.pooled, batch.size_ids, mask=conditioning.mask)
        return self.components.network.predict(self.components.unet, noisy, batch.timesteps, text, self.dtype)

    # -- the indicator

    def _observe(self, prior: Tensor, tuned: Tensor, noisy: Tensor, batch: Batch) -> Tensor:
        """Observe epsilon errors, unweighted and unmasked, for any prediction type [ours]. Returns the prior's mean."""
        errors = [
            squared_error(self.schedule.to_epsilon(prediction.detach().float(), noisy, batch.timesteps), batch.noise)
            for prediction in (prior, tuned)
        ]
        self.indicator.observe(batch.timesteps, *errors)
        return errors[0].mean()

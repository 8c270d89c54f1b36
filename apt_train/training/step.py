"""One training step: prior pass, tuned pass, losses, indicator, weighted total.

In: what happens between a drawn batch and a loss to call `backward` on. Not in: drawing (batch.py), the optimizer
(update.py), everything that lasts longer (setup.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ..adapter import Adapter
from ..data.batch import Batch
from ..errors import InputError
from ..families.noise import NoiseSchedule
from ..text.conditioning import Conditioner, Conditioning
from .capture import Capture, Captured, attention_maps
from .indicator import OverfitIndicator
from .losses import alignment_loss, dco_per_sample, squared_error, stabilization_loss
from .objective import Objective


@dataclass
class StepOutput:
    """Scalars of one pass. `parts`: the terms as they enter the total, weights included."""

    total: Tensor
    denoising: Tensor
    stabilization: Tensor | None = None
    alignment: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Pass:
    """One forward pass of the UNet."""

    prediction: Tensor
    captured: Captured
    conditioning: Conditioning


@dataclass
class TrainingStep:
    """The step of one run: call it with a batch, call `backward` on `total`."""

    unet: UNet2DConditionModel
    adapter: Adapter
    conditioner: Conditioner
    schedule: NoiseSchedule
    indicator: OverfitIndicator
    objective: Objective
    uses_size_ids: bool = False
    dtype: torch.dtype = torch.float32
    save_memory: bool = False
    chunks: int = 1  # every caption is padded to as many 77-token chunks, so that its batch does not matter

    def __post_init__(self) -> None:
        goal = self.objective
        self._regularised = Capture(
            self.unet,
            features=goal.dist_layers if goal.dist_weight > 0 else None,
            attention=goal.attn_layers if goal.attn_weight > 0 else None,
        )

    def __call__(self, batch: Batch, *, with_prior: bool, attn_factor: float = 1.0) -> StepOutput:
        """Loss of a batch. `with_prior`: run the prior pass and what hangs on it; `attn_factor` scales its weight."""
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)

        # The prior: adapter off, class caption, no gradient [ours; the paper keeps a frozen copy].
        prior = self._prior_pass(noisy, batch) if with_prior else None
        tuned = self._pass(noisy, batch, tuned=True, captured=with_prior)

        # The indicator sees this pass before the weight is taken [reported].
        if prior is not None:
            self._observe(prior.prediction, tuned.prediction, noisy, batch)
        loss = squared_error(tuned.prediction, target, batch.mask)  # (N,)
        output = self._data_term(loss, prior, target, batch)
        if prior is not None:
            self._add_stabilization(output, tuned, prior)
            self._add_alignment(output, tuned, prior, batch, attn_factor)
        output.total = torch.stack(list(output.parts.values())).sum() if len(output.parts) > 1 else output.total
        return output

    def preservation(self, batch: Batch) -> Tensor:
        """Plain denoising loss on prior-preservation pictures with their class captions (DreamBooth's second term)."""
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)
        conditioning = self.conditioner.encode(batch.captions, tuned=False, chunks=self.chunks)
        return squared_error(self.predict(noisy, batch, conditioning), target, batch.mask).mean()

    # -- the two passes

    def _prior_pass(self, noisy: Tensor, batch: Batch) -> Pass:
        with torch.no_grad(), self.adapter.disabled():
            return self._pass(noisy, batch, tuned=False, captured=True)

    def _pass(self, noisy: Tensor, batch: Batch, *, tuned: bool, captured: bool) -> Pass:
        conditioning = self.conditioner.encode(batch.captions, tuned=tuned, chunks=self.chunks)
        with self._regularised.record() if captured else nullcontext(Captured()) as record:
            prediction = self.predict(noisy, batch, conditioning)
        return Pass(prediction, record, conditioning)

    def predict(self, noisy: Tensor, batch: Batch, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, float32 (N, C, h, w), computed in `dtype`, with the adapter as it is."""
        extra = None
        if self.uses_size_ids:
            assert conditioning.pooled is not None
            # The ids stay float32: bf16 rounds 1023.
            extra = {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": batch.size_ids}
        hidden = conditioning.hidden.to(self.dtype)
        result = self.unet(noisy.to(self.dtype), batch.timesteps, encoder_hidden_states=hidden, added_cond_kwargs=extra)
        return result.sample.float()

    # -- the terms

    def _observe(self, prior: Tensor, tuned: Tensor, noisy: Tensor, batch: Batch) -> None:
        """Epsilon errors, unweighted and unmasked, whatever the model predicts [ours]."""
        errors = [
            squared_error(self.schedule.to_epsilon(prediction.detach().float(), noisy, batch.timesteps), batch.noise)
            for prediction in (prior, tuned)
        ]
        if not torch.isfinite(errors[0]).all():
            raise InputError(
                "The model's own prediction is not a number in this precision: train in bf16 or fp32, or check it."
            )
        self.indicator.observe(batch.timesteps, *errors)

    def _data_term(self, loss: Tensor, prior: Pass | None, target: Tensor, batch: Batch) -> StepOutput:
        if self.objective.dco_beta is not None:
            assert prior is not None, "DCO's loss is taken against the prior"
            prior_loss = squared_error(prior.prediction, target, batch.mask)
            weighted = dco_per_sample(loss, prior_loss, self.objective.dco_beta)
        elif self.objective.adaptive_loss_weight:
            weighted = (1 - self.indicator.gamma_at(batch.timesteps)) * loss  # L_aptDM [reported]
        else:
            weighted = loss
        term = weighted.mean()
        return StepOutput(total=term, denoising=loss.mean().detach(), parts={"denoising": term})

    def _add_stabilization(self, output: StepOutput, tuned: Pass, prior: Pass) -> None:
        if self.objective.dist_weight == 0:
            return
        features, reference = (list(p.captured.features.values()) for p in (tuned, prior))
        mu, sigma = stabilization_loss(features, reference, self.objective.dist_mode)
        output.stabilization = (mu + sigma).detach()
        output.parts["stabilization"] = self.objective.lazy_prior * self.objective.dist_weight * (mu + sigma)

    def _add_alignment(self, output: StepOutput, tuned: Pass, prior: Pass, batch: Batch, factor: float) -> None:
        if self.objective.attn_weight == 0:
            return
        maps, reference = self._maps(tuned), self._maps(prior)
        term = alignment_loss(maps, reference)
        output.alignment = term.detach()
        if self.objective.attn_schedule == "indicator":
            term = alignment_loss(maps, reference, self.indicator.gamma_at(batch.timesteps))
        output.parts["alignment"] = self.objective.lazy_prior * self.objective.attn_weight * factor * term

    def _maps(self, result: Pass) -> list[Tensor]:
        conditioning = result.conditioning
        save_memory = self.save_memory and result.prediction.requires_grad
        return attention_maps(result.captured, conditioning.columns, conditioning.num_columns, save_memory=save_memory)

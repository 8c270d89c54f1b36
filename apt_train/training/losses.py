"""The terms of the loss, as pure functions of predictions, features and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Moments = tuple[Tensor, Tensor]  # mean and standard deviation, (N, channels) each


def squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error per sample, float32 (N,), of tensors (N, C, H, W).

    `mask`: weights (N, 1, H, W) in [0, 1] for a weighted mean, so that a small mask does not mean a small loss (ours).
    A mask that is zero everywhere gives zero.
    """
    return per_sample(F.mse_loss(prediction.float(), target.float(), reduction="none"), mask)


def per_sample(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of errors (N, C, H, W) per sample, (N,), weighted by a mask as in `squared_error`."""
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    weight = mask.float().expand_as(error)
    return (error * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def stabilization_loss(
    tuned: Sequence[Tensor], prior: Sequence[Tensor], mode: Literal["relative", "raw"] = "relative"
) -> tuple[Tensor, Tensor]:
    """L_mu and L_sigma: how far the features' mean and standard deviation have moved from the prior's.

    Takes features (N, positions, channels), one tensor per layer. Per channel: mean and population standard deviation
    over positions, in float32; squared differences, averaged over channels (paper: mean and variance, symbols L_mu,
    L_sigma). `relative` divides by the prior's mean variance in that layer and sample (ours), `raw` does not. Returns
    two scalars, averaged over samples and layers.
    """
    return moment_loss([moments(t) for t in tuned], [moments(p) for p in prior], mode)


def moment_loss(tuned: Sequence[Moments], prior: Sequence[Moments], mode: str) -> tuple[Tensor, Tensor]:
    """`stabilization_loss` from precomputed `moments`."""
    terms = [_moment_shift(t, p, mode) for t, p in zip(tuned, prior, strict=True)]
    mu, sigma = zip(*terms, strict=True)
    return torch.stack(mu).mean(), torch.stack(sigma).mean()


def _moment_shift(tuned: Moments, prior: Moments, mode: str) -> tuple[Tensor, Tensor]:
    (mu_tuned, sigma_tuned), (mu_prior, sigma_prior) = tuned, prior
    mu = (mu_tuned - mu_prior).square().mean(dim=-1)  # (N,)
    sigma = (sigma_tuned - sigma_prior).square().mean(dim=-1)
    if mode == "relative":
        scale = sigma_prior.square().mean(dim=-1) + 1e-6
        mu, sigma = mu / scale, sigma / scale
    return mu.mean(), sigma.mean()


def moments(features: Tensor) -> Moments:
    """Mean and population standard deviation over positions of (N, positions, channels): (N, channels) each."""
    features = features.float()
    variance = features.var(dim=1, correction=0)
    # The slope of sqrt is infinite at 0, where a channel is constant; the floor keeps its gradient finite.
    return features.mean(dim=1), variance.clamp(min=1e-12).sqrt()


def alignment_loss(tuned: Sequence[Tensor], prior: Sequence[Tensor], sample_weight: Tensor | None = None) -> Tensor:
    """L_attn: how far the cross-attention has moved from the prior's.

    Takes maps (N, heads, positions, columns), one tensor per layer, columns already matched by token. Squared
    differences, summed over columns (a mean over them would bury the signal), then averaged over positions, heads,
    samples and layers (ours; the distance is unpublished). `sample_weight` (N,): a factor per sample. Returns a scalar.
    """
    terms: list[Tensor] = []
    for t, p in zip(tuned, prior, strict=True):
        per_sample = (t.float() - p.float()).square().sum(dim=-1).mean(dim=(1, 2))
        terms.append((per_sample if sample_weight is None else per_sample * sample_weight).mean())
    return torch.stack(terms).mean()


def dco_loss(tuned_loss: Tensor, prior_loss: Tensor, beta: float = 1000.0) -> Tensor:
    """Direct Consistency Optimization (arXiv 2402.12004): -log sigmoid(-beta (L_tuned - L_prior)).

    Per-sample losses (N,) -> scalar, mean over samples.
    """
    return F.softplus(beta * (tuned_loss - prior_loss.detach())).mean()

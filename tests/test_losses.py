"""The terms of the loss by hand, against plain loops, and by properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_train.config import StabilizationMode
from apt_train.rng import generator
from apt_train.training.losses import alignment_loss, dco_loss, squared_error, stabilization_loss

few = settings(max_examples=30)
seeds = st.integers(0, 10_000)


def features(seed: int, samples: int = 2, positions: int = 6, channels: int = 3) -> Tensor:
    return torch.randn(samples, positions, channels, generator=generator("features", seed))


def maps(seed: int, samples: int = 2, heads: int = 2, positions: int = 5, columns: int = 4) -> Tensor:
    return torch.randn(samples, heads, positions, columns, generator=generator("maps", seed)).softmax(dim=-1)


# Denoising


def test_squared_error_is_the_mean_per_sample() -> None:
    target = torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    assert squared_error(prediction, target).tolist() == [7.5, 1.0]


def test_a_mask_weighs_positions_and_keeps_the_scale() -> None:
    target = torch.zeros(1, 2, 1, 2)
    prediction = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert squared_error(prediction, target, torch.tensor([[[[1.0, 0.0]]]])).item() == pytest.approx(5.0)  # (1 + 9) / 2
    weighed = squared_error(prediction, target, torch.tensor([[[[0.5, 0.25]]]])).item()
    assert weighed == pytest.approx((0.5 * (1 + 9) + 0.25 * (4 + 16)) / 1.5)
    ones = torch.ones(1, 1, 1, 2)
    torch.testing.assert_close(squared_error(prediction, target, ones), squared_error(prediction, target))


def test_a_mask_of_nothing_gives_zero_with_a_finite_gradient() -> None:
    prediction = torch.ones(1, 2, 2, 2, requires_grad=True)
    loss = squared_error(prediction, torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2))
    loss.sum().backward()
    assert (
        loss.item() == 0 and prediction.grad is not None and torch.equal(prediction.grad, torch.zeros_like(prediction))
    )


def test_half_precision_errors_are_taken_in_float32() -> None:
    prediction = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # 300^2 is beyond float16
    loss = squared_error(prediction, torch.zeros_like(prediction))
    assert loss.dtype == torch.float32 and loss.item() == 90_000


# Stabilization


def moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def brute_force_stabilization(tuned: list[Tensor], prior: list[Tensor], mode: str) -> tuple[float, float]:
    mu_terms, sigma_terms = [], []
    for t, p in zip(tuned, prior, strict=True):
        for n in range(t.shape[0]):
            pairs = [(moments(t[n, :, c].tolist()), moments(p[n, :, c].tolist())) for c in range(t.shape[2])]
            mu = math.fsum((a[0] - b[0]) ** 2 for a, b in pairs) / len(pairs)
            sigma = math.fsum((a[1] - b[1]) ** 2 for a, b in pairs) / len(pairs)
            scale = math.fsum(b[1] ** 2 for _, b in pairs) / len(pairs) + 1e-6 if mode == "relative" else 1.0
            mu_terms.append((mu / scale, t.shape[0]))
            sigma_terms.append((sigma / scale, t.shape[0]))
    layers = len(tuned)
    mu, sigma = (math.fsum(v / n for v, n in terms) / layers for terms in (mu_terms, sigma_terms))
    return mu, sigma


def test_stabilization_by_hand() -> None:
    prior = torch.tensor([[[0.0, 1.0], [2.0, 5.0]]])  # means 1, 3; deviations 1, 2
    tuned = torch.tensor([[[2.0, 3.0], [2.0, 3.0 + 2.0]]])  # means 2, 4; deviations 0, 1
    mu, sigma = stabilization_loss([tuned], [prior], mode="raw")
    assert (mu.item(), sigma.item()) == pytest.approx((1.0, 1.0), rel=1e-5)
    mu, sigma = stabilization_loss([tuned], [prior])  # relative is the default: over (1 + 4) / 2
    assert (mu.item(), sigma.item()) == pytest.approx((0.4, 0.4), rel=1e-5)


def test_the_deviation_is_the_populations() -> None:
    prior, tuned = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [2.0]]])
    assert stabilization_loss([tuned], [prior], mode="raw")[1].item() == pytest.approx(
        1.0, rel=1e-5
    )  # n - 1 would give 2


@few
@given(seeds, st.sampled_from(["relative", "raw"]), st.integers(1, 3), st.integers(1, 3))
def test_stabilization_equals_the_plain_loop(seed: int, mode: StabilizationMode, layers: int, samples: int) -> None:
    tuned = [features(seed + i, samples, 4 + i, 2 + i) for i in range(layers)]
    prior = [2 * features(seed + 99 + i, samples, 4 + i, 2 + i) + 1 for i in range(layers)]
    found = [term.item() for term in stabilization_loss(tuned, prior, mode)]
    assert found == pytest.approx(brute_force_stabilization(tuned, prior, mode), rel=1e-4, abs=1e-6)


@few
@given(seeds, st.integers(1, 8), st.sampled_from([0.25, 3.0, 100.0]), st.floats(-5, 5))
def test_stabilization_sees_neither_the_order_of_positions_nor_relative_scale(
    seed: int, roll: int, scale: float, shift: float
) -> None:
    tuned, prior = features(seed), features(seed + 1)
    plain = torch.stack(stabilization_loss([tuned], [prior]))
    moved = torch.stack(stabilization_loss([tuned.roll(roll, 1)], [prior.flip(1)]))
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-5)
    scaled = torch.stack(stabilization_loss([scale * tuned + shift], [scale * prior + shift]))
    torch.testing.assert_close(scaled, plain, rtol=1e-2, atol=1e-4)
    raw = torch.stack(stabilization_loss([scale * tuned], [scale * prior], mode="raw"))
    expected = scale**2 * torch.stack(stabilization_loss([tuned], [prior], mode="raw"))
    torch.testing.assert_close(raw, expected, rtol=1e-3, atol=1e-4)


def test_each_layer_and_sample_has_its_own_scale() -> None:
    """A loud layer does not drown a quiet one: `relative` divides before the mean."""
    quiet, loud = features(0, 1), 1000 * features(1, 1)
    both = stabilization_loss([quiet + 0.1, loud + 100], [quiet, loud])[0]
    alone = [stabilization_loss([x], [y])[0] for x, y in ((quiet + 0.1, quiet), (loud + 100, loud))]
    torch.testing.assert_close(both, torch.stack(alone).mean(), rtol=1e-3, atol=1e-6)
    stacked = stabilization_loss([torch.cat([quiet + 0.1, loud + 100])], [torch.cat([quiet, loud])])[0]
    torch.testing.assert_close(stacked, both, rtol=1e-3, atol=1e-6)


def test_a_shift_moves_the_mean_alone_and_a_stretch_about_it_the_deviation_alone() -> None:
    prior = features(4)
    mu, sigma = stabilization_loss([prior + 3], [prior], mode="raw")
    assert (mu.item(), sigma.item()) == pytest.approx((9.0, 0.0), rel=1e-4, abs=1e-6)
    centre = prior.mean(dim=1, keepdim=True)
    mu, sigma = stabilization_loss([centre + 2 * (prior - centre)], [prior], mode="raw")
    assert mu.item() == pytest.approx(0, abs=1e-6)
    assert sigma.item() == pytest.approx(prior.var(dim=1, correction=0).mean().item(), rel=1e-4)


@pytest.mark.parametrize("mode", ["relative", "raw"])
@pytest.mark.parametrize("constant", [False, True])
def test_stabilization_has_no_gradient_at_equality(mode: StabilizationMode, constant: bool) -> None:
    prior = torch.ones(2, 6, 3) if constant else features(5)
    tuned = prior.clone().requires_grad_()
    mu, sigma = stabilization_loss([tuned], [prior], mode)
    (mu + sigma).backward()
    assert mu.item() == sigma.item() == 0
    assert tuned.grad is not None and torch.equal(tuned.grad, torch.zeros_like(prior))


def test_a_constant_channel_has_a_finite_gradient() -> None:
    tuned = features(6)
    tuned[:, :, 0] = 0.5  # the square root's slope at 0 is infinite
    tuned.requires_grad_()
    mu, sigma = stabilization_loss([tuned], [features(7)])
    (mu + sigma).backward()
    assert tuned.grad is not None and torch.isfinite(tuned.grad).all() and tuned.grad[:, :, 1:].abs().sum() > 0


def test_stabilization_of_a_prior_without_variance_is_finite() -> None:
    mu, sigma = stabilization_loss([features(8)], [torch.zeros(2, 6, 3)])
    assert torch.isfinite(mu) and torch.isfinite(sigma) and mu > 0


def test_bfloat16_features_are_measured_in_float32() -> None:
    prior = (100 + features(9)).bfloat16()
    tuned = prior.float() + 0.125  # below bfloat16's resolution at 100
    mu, _ = stabilization_loss([tuned], [prior], mode="raw")
    assert mu.dtype == torch.float32 and mu.item() == pytest.approx(0.125**2, rel=1e-2)


@few
@given(seeds)
def test_the_gradient_of_stabilization_leads_downhill(seed: int) -> None:
    prior, tuned = features(seed), features(seed + 1).requires_grad_()
    loss = torch.stack(stabilization_loss([tuned], [prior])).sum()
    (gradient,) = torch.autograd.grad(loss, tuned)
    after = torch.stack(stabilization_loss([tuned.detach() - 1e-2 * gradient], [prior])).sum()
    assert after < loss


# Alignment


def test_alignment_by_hand_sums_over_columns_and_averages_elsewhere() -> None:
    prior = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    tuned = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
    assert alignment_loss([tuned], [prior]).item() == pytest.approx((0.25 + 0.25) / 2)


@few
@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_alignment_equals_the_plain_loop(seed: int, layers: int, samples: int) -> None:
    tuned = [maps(seed + i, samples, positions=3 + i) for i in range(layers)]
    prior = [maps(seed + 50 + i, samples, positions=3 + i) for i in range(layers)]
    expected = 0.0
    for t, p in zip(tuned, prior, strict=True):
        rows = t.shape[0] * t.shape[1] * t.shape[2]
        expected += (
            math.fsum((a - b) ** 2 for a, b in zip(t.flatten().tolist(), p.flatten().tolist(), strict=True)) / rows
        )
    assert alignment_loss(tuned, prior).item() == pytest.approx(expected / layers, rel=1e-4)


def test_empty_columns_do_not_dilute_alignment() -> None:
    tuned, prior = maps(1), maps(2)
    empty = torch.zeros(*tuned.shape[:-1], 70)
    wide = alignment_loss([torch.cat([tuned, empty], -1)], [torch.cat([prior, empty], -1)])
    torch.testing.assert_close(wide, alignment_loss([tuned], [prior]))


@few
@given(seeds)
def test_alignment_is_symmetric_bounded_and_zero_at_equality(seed: int) -> None:
    tuned, prior = maps(seed), maps(seed + 1)
    value = alignment_loss([tuned], [prior])
    torch.testing.assert_close(value, alignment_loss([prior], [tuned]))
    assert 0 < value <= 2  # two rows that sum to 1 differ by at most 2
    equal = tuned.clone().requires_grad_()
    loss = alignment_loss([equal], [tuned])
    (gradient,) = torch.autograd.grad(loss, equal)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros_like(tuned))


def test_a_sample_weight_scales_each_sample_before_the_mean() -> None:
    tuned, prior = maps(3), maps(4)
    one, two = (alignment_loss([tuned[i : i + 1]], [prior[i : i + 1]]) for i in (0, 1))
    found = alignment_loss([tuned, tuned], [prior, prior], torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(found, 0.25 * one / 2)
    torch.testing.assert_close(alignment_loss([tuned], [prior], torch.ones(2)), (one + two) / 2)


def test_lists_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError):
        alignment_loss([maps(0), maps(1)], [maps(0)])
    with pytest.raises(ValueError):
        stabilization_loss([features(0)], [features(0), features(1)])


# DCO


@few
@given(
    st.lists(st.tuples(st.floats(0, 0.02), st.floats(0, 0.02)), min_size=1, max_size=4),
    st.sampled_from([1.0, 100.0, 1000.0]),
)
def test_dco_equals_minus_log_sigmoid(pairs: list[tuple[float, float]], beta: float) -> None:
    tuned, prior = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in (0, 1))
    expected = math.fsum(-math.log(1 / (1 + math.exp(beta * (t - p)))) for t, p in pairs) / len(pairs)
    assert dco_loss(tuned, prior, beta).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_dco_is_log_two_at_equality_and_beta_is_1000_by_default() -> None:
    loss = torch.tensor([0.3, 0.1])
    assert dco_loss(loss, loss).item() == pytest.approx(math.log(2))
    assert dco_loss(torch.tensor([0.101]), torch.tensor([0.1])).item() == pytest.approx(math.log(1 + math.e), rel=1e-4)


@pytest.mark.parametrize("gap", [-10.0, 10.0])
def test_dco_does_not_overflow(gap: float) -> None:
    tuned = torch.tensor([20.0 + gap], requires_grad=True)
    loss = dco_loss(tuned, torch.tensor([20.0]), beta=1e6)
    (slope,) = torch.autograd.grad(loss, tuned)
    assert loss.item() == pytest.approx(max(0.0, 1e6 * gap), rel=1e-6)
    assert slope.item() == pytest.approx(1e6 if gap > 0 else 0.0, rel=1e-6)


def test_dcos_slope_is_beta_times_sigmoid_and_the_prior_gets_none() -> None:
    tuned = torch.tensor([0.1005, 0.2], requires_grad=True)
    prior = torch.tensor([0.1, 0.2], requires_grad=True)
    dco_loss(tuned, prior, beta=1000.0).backward()
    expected = [1000 / (1 + math.exp(-0.5)) / 2, 1000 * 0.5 / 2]
    assert tuned.grad is not None and tuned.grad.tolist() == pytest.approx(expected, rel=1e-3)
    assert prior.grad is None

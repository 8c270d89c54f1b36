"""The noise schedule: hand values, epsilon from both kinds of prediction, zero terminal SNR."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_train.families.noise import NoiseSchedule, PredictionType, rescale_zero_terminal_snr
from apt_train.rng import generator
from apt_train.training.losses import squared_error
from tests.tiny import scaled_linear_schedule

few = settings(max_examples=30)


def drawn(seed: int, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    draws = generator("noise", seed)
    latents, noise, error = torch.randn(3, count, 4, 5, 5, generator=draws)
    return latents, noise, error


def theirs(prediction_type: PredictionType = "epsilon", zero: bool = False) -> Any:
    """diffusers' scheduler, whose annotations know no plain tensor."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero,
    )


def test_noisy_latents_by_hand() -> None:
    schedule = NoiseSchedule(torch.tensor([0.81, 0.25, 0.0]))
    ones = torch.ones(3, 1, 1, 1)
    noisy = schedule.add_noise(10 * ones, ones, torch.tensor([0, 1, 2]))
    expected = torch.tensor([0.9 * 10 + 0.19**0.5, 0.5 * 10 + 0.75**0.5, 1.0])
    torch.testing.assert_close(noisy.flatten(), expected)
    assert schedule.num_timesteps == 3 and schedule.zero_terminal_snr


@pytest.mark.parametrize("zero", [False, True])
def test_schedule_and_targets_agree_with_diffusers(zero: bool) -> None:
    ours = scaled_linear_schedule(prediction_type="v_prediction", zero_terminal_snr=zero)
    other = theirs("v_prediction", zero)
    latents, noise, _ = drawn(0, 5)
    timesteps = torch.tensor([0, 1, 499, 998, 999])
    torch.testing.assert_close(ours.alphas_cumprod, other.alphas_cumprod, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(
        ours.add_noise(latents, noise, timesteps), other.add_noise(latents, noise, timesteps), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        ours.target(latents, noise, timesteps), other.get_velocity(latents, noise, timesteps), rtol=1e-4, atol=1e-4
    )
    assert ours.zero_terminal_snr is zero


def test_an_epsilon_model_is_trained_on_the_noise_itself() -> None:
    latents, noise, prediction = drawn(1)
    timesteps = torch.tensor([3, 500, 999])
    schedule = scaled_linear_schedule()
    assert torch.equal(schedule.target(latents, noise, timesteps), noise)
    assert torch.equal(schedule.to_epsilon(prediction, latents, timesteps), prediction)


@few
@given(st.integers(0, 10_000), st.lists(st.integers(0, 999), min_size=1, max_size=4), st.booleans())
def test_a_perfect_v_prediction_stands_for_the_noise(seed: int, timesteps: list[int], zero: bool) -> None:
    schedule = scaled_linear_schedule(prediction_type="v_prediction", zero_terminal_snr=zero)
    latents, noise, _ = drawn(seed, len(timesteps))
    t = torch.tensor(timesteps)
    noisy = schedule.add_noise(latents, noise, t)
    epsilon = schedule.to_epsilon(schedule.target(latents, noise, t), noisy, t)
    torch.testing.assert_close(epsilon, noise, rtol=1e-4, atol=1e-5)


@few
@given(st.integers(0, 10_000), st.integers(0, 999), st.booleans())
def test_epsilon_error_is_alpha_bar_times_v_error(seed: int, timestep: int, zero: bool) -> None:
    schedule = scaled_linear_schedule(prediction_type="v_prediction", zero_terminal_snr=zero)
    latents, noise, error = drawn(seed)
    t = torch.full((3,), timestep)
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    v_error = squared_error(target + error, target)
    epsilon_error = squared_error(schedule.to_epsilon(target + error, noisy, t), noise)
    torch.testing.assert_close(epsilon_error, schedule.alphas_cumprod[timestep] * v_error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_zero_terminal_snr_is_finite_to_the_last_step(prediction_type: PredictionType) -> None:
    schedule = scaled_linear_schedule(prediction_type=prediction_type, zero_terminal_snr=True)
    latents, noise, prediction = drawn(2, 2)
    t = torch.tensor([998, 999])
    noisy = schedule.add_noise(latents, noise, t)
    assert schedule.alphas_cumprod[-1] == 0
    assert torch.equal(noisy[1], noise[1])  # nothing but noise is left
    for values in (noisy, schedule.target(latents, noise, t), schedule.to_epsilon(prediction, noisy, t)):
        assert torch.isfinite(values).all()


def test_rescaling_keeps_the_first_entry_and_the_order() -> None:
    plain = scaled_linear_schedule().alphas_cumprod.double()
    rescaled = rescale_zero_terminal_snr(plain)
    assert rescaled[0] == pytest.approx(float(plain[0]), rel=1e-6) and rescaled[-1] == 0
    assert (rescaled.diff() < 0).all() and (rescaled <= plain + 1e-9).all()


def test_half_precision_latents_keep_the_schedule_in_float32() -> None:
    schedule = scaled_linear_schedule()
    signal, sigma = schedule.signal_and_noise(torch.tensor([0, 999]))
    assert signal.shape == (2, 1, 1, 1) and signal.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(signal.square() + sigma.square(), torch.ones(2, 1, 1, 1))

"""Builds the noise schedule from a diffusers scheduler configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...disk.json_file import short_name
from ...errors import InputError
from ..noise import NoiseSchedule, PredictionType, rescale_zero_terminal_snr


def schedule_from_config(
    config: Mapping[str, Any], prediction_type: PredictionType | None = None, zero_terminal_snr: bool | None = None
) -> NoiseSchedule:
    """Schedule from `num_train_timesteps`, `beta_*`, `trained_betas`, `rescale_betas_zero_snr`, `prediction_type`.

    Absent entries have diffusers' defaults. The arguments `prediction_type` and `zero_terminal_snr` (the last timestep
    is pure noise) override the configuration. InputError: a flow-matching or EDM scheduler, an unknown beta schedule,
    a model that predicts the picture itself, or zero terminal SNR for one that predicts epsilon.
    """
    name = str(config.get("_class_name", ""))
    is_flow = "FlowMatch" in name or config.get("use_flow_sigmas")
    other = "a flow-matching" if is_flow else "an EDM" if "EDM" in name or "sigma_data" in config else ""
    if other:
        raise InputError(f"The scheduler is {other} one: only the noise schedules of SD1.5 and SDXL can be trained.")
    kind = prediction_type or config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        known = "only models that predict epsilon or v_prediction can be trained"
        raise InputError(f"prediction_type is {short_name(kind)}: {known}.")
    alphas_cumprod = torch.cumprod(1 - betas_from_config(config), dim=0)
    if zero_terminal_snr and kind == "epsilon":
        raise InputError(
            "zero_terminal_snr is on, but the model predicts epsilon, which says nothing about the picture at pure "
            "noise: leave it off, or set prediction_type to v_prediction."
        )
    if config.get("rescale_betas_zero_snr") if zero_terminal_snr is None else zero_terminal_snr:
        alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
    return NoiseSchedule(alphas_cumprod.float(), kind)


def betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """The betas, float64 (num_timesteps,)."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":
        return _cosine_betas(steps)
    known = "linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
    raise InputError(f"beta_schedule is {short_name(name)}: use {known}.")


def _cosine_betas(steps: int) -> Tensor:
    """beta_t = 1 - alpha_bar(t+1) / alpha_bar(t), alpha_bar a squared cosine (arXiv 2102.09672), capped."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)

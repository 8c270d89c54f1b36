"""What each method trains on: the terms that are switched on, with their weights."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import AptConfig, AttnSchedule, Layers, Method, StabilizationMode


@dataclass(frozen=True)
class Objective:
    """The loss of one run: L = (1 - gamma) L_DM + dist_weight (L_mu + L_sigma) + attn_weight L_attn, or DCO's.

    A weight of 0 means that the term is not computed. The form is the paper's (reported); DreamBooth and T-LoRA keep
    the first term alone, with gamma at 0.
    """

    adaptive_augmentation: bool = False
    adaptive_loss_weight: bool = False
    dist_weight: float = 0.0
    dist_layers: Layers = "up"
    dist_mode: StabilizationMode = "relative"
    attn_weight: float = 0.0
    attn_layers: Layers = "up"
    attn_schedule: AttnSchedule = "constant"
    dco_beta: float | None = None
    rank_by_timestep: bool = False
    watch_indicator: bool = False
    lazy_prior: int = 1
    p_max: float = 0.8
    mask_fill: bool = False

    def needs_prior(self, step: int) -> bool:
        """Whether the prior pass runs in this step (0-based)."""
        reasons = (
            self.adaptive_augmentation,
            self.adaptive_loss_weight,
            self.dist_weight > 0,
            self.attn_weight > 0,
            self.dco_beta is not None,
            self.watch_indicator,
        )
        return any(reasons) and step % self.lazy_prior == 0

    def attn_factor(self, step: int, steps: int) -> float:
        """The alignment weight's share of its full size in this step (0-based) of `steps`."""
        return step / max(1, steps - 1) if self.attn_schedule == "linear" else 1.0


def objective_of(method: Method, apt: AptConfig, dco_beta: float) -> Objective:
    """The objective of a method; APT's switches act under `apt` alone."""
    shared = {"watch_indicator": apt.watch_indicator, "lazy_prior": apt.lazy_prior, "p_max": apt.p_max}
    if method == "dreambooth":
        return Objective(**shared)
    if method == "tlora":
        return Objective(**shared, rank_by_timestep=True)
    if method == "dco":
        return Objective(**shared, dco_beta=dco_beta)
    return Objective(
        **shared,
        adaptive_augmentation=apt.adaptive_augmentation,
        adaptive_loss_weight=apt.adaptive_loss_weight,
        dist_weight=apt.dist_weight if apt.stabilization else 0.0,
        dist_layers=apt.dist_layers,
        dist_mode=apt.dist_mode,
        attn_weight=apt.attn_weight if apt.alignment else 0.0,
        attn_layers=apt.attn_layers,
        attn_schedule=apt.attn_schedule,
        mask_fill=apt.mask_fill,
    )

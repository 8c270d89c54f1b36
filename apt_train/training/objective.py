"""What a method trains on: its terms, what else depends on the indicator, and when the prior pass runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..config import TrainConfig
from ..errors import InputError
from ..families.network import Network
from ..run.log import FIELDS, TERM_NAME
from .terms import Denoising, Preservation, Term, terms_of


@dataclass(frozen=True)
class Objective:
    """The loss of one run as a list of terms, and what else the method does."""

    terms: tuple[Term, ...] = (Denoising(),)
    adaptive_augmentation: bool = False
    rank_by_timestep: bool = False
    watch_indicator: bool = False
    lazy_prior: int = 1
    p_max: float = 0.8
    mask_fill: bool = False

    def __post_init__(self) -> None:
        names = [*(term.name for term in self.terms), Preservation.name]
        for name in names:
            free = names.count(name) == 1 and name not in FIELDS and TERM_NAME.fullmatch(name)
            assert free, f"no term can be called {name}: take lower-case letters and _, no other term's name or field's"

    def needs_prior(self, step: int) -> bool:
        """Whether this step (0-based) runs the prior pass."""
        by_terms = any(term.reads_prior or term.reads_gamma for term in self.terms)
        return (by_terms or self.adaptive_augmentation or self.watch_indicator) and step % self.lazy_prior == 0


def objective_of(config: TrainConfig) -> Objective:
    """The objective of a method; APT's switches apply only under `apt`."""
    apt, is_apt = config.apt, config.method == "apt"
    return Objective(
        terms=terms_of(config),
        adaptive_augmentation=is_apt and apt.adaptive_augmentation,
        rank_by_timestep=config.method == "tlora",
        watch_indicator=apt.watch_indicator,
        lazy_prior=apt.lazy_prior,
        p_max=apt.p_max,
        mask_fill=is_apt and apt.mask_fill,
    )


def check_layers(objective: Objective, network: Network, unet: nn.Module) -> None:
    """InputError: the network has no attention in the part that a term reads."""
    for term in objective.terms:
        featureless = term.features is not None and not network.features(unet, term.features)
        if featureless or (term.attention is not None and not network.attention(unet, term.attention)):
            raise InputError(
                f"{term.layers_setting} is {term.features or term.attention}, but this model has no attention there: "
                f"choose all, or switch {term.name} off."
            )

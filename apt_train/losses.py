"""The losses, under the name that other code imports them by."""

from .training.losses import alignment_loss, dco_loss, stabilization_loss

__all__ = ["alignment_loss", "dco_loss", "stabilization_loss"]

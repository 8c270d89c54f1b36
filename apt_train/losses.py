"""Re-exports the losses under their public names."""

from .training.losses import alignment_loss, dco_loss, stabilization_loss

__all__ = ["alignment_loss", "dco_loss", "stabilization_loss"]

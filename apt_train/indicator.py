"""Re-exports the overfitting indicator under its public name."""

from .training.indicator import OverfitIndicator

__all__ = ["OverfitIndicator"]

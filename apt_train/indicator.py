"""The overfitting indicator, under the name that other code imports it by."""

from .training.indicator import OverfitIndicator

__all__ = ["OverfitIndicator"]

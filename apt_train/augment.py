"""Re-exports the augmentation under its public name."""

from .data.augment import affine

__all__ = ["affine"]

"""The augmentation, under the name that other code imports it by."""

from .data.augment import affine

__all__ = ["affine"]

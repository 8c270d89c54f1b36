"""Checkpoints become `Components`: a single file in the original layout, or a diffusers folder."""

from .load import load_checkpoint

__all__ = ["load_checkpoint"]

"""Checkpoints become `Components`: a single file in the original layout, or a diffusers folder.

`load_checkpoint` is imported on first use: diffusers and transformers take seconds, and not every module needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import load_checkpoint

__all__ = ["load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name != "load_checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .load import load_checkpoint

    return load_checkpoint

"""The pack's own wire types, and the data they carry.

In: names and plain data. Not in: reading or writing a run's files (`run_store`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

AptRunWire = io.Custom("APT_RUN")
AptOptionsWire = io.Custom("APT_OPTIONS")


@dataclass(frozen=True)
class AptRun:
    """A finished or stopped run as other nodes see it: where it is and which words a prompt needs."""

    folder: Path  # output/apt_train/<subject>_<hash12>, in the layout of the command line's --output
    stem: str  # <subject>_<method>_<steps>: names the LoRA in output/loras and the learned word's embedding
    subject: str
    class_word: str
    trigger: str  # the words a prompt needs
    steps: int  # the step the run is at
    owner: str = ""  # eight digits that distinguish its published files from another run's

    @property
    def run_id(self) -> str:
        """The folder's name, by which live messages and routes identify the run."""
        return self.folder.name


@dataclass(frozen=True)
class AptOptions:
    """The settings from the options nodes.

    `settings`: by name, only those that the nodes show. `prior_images`: class pictures, float (N, H, W, C) in [0, 1],
    or a list of them.
    """

    settings: dict[str, Any]
    background: str = "white"
    alpha_masks: bool = False
    mask_counts: str = "white"  # which part of a mask counts: white or black
    prior_images: Any = None

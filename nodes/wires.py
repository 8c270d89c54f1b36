"""The pack's own wire types, and what travels on them.

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
    """A finished or stopped run as other nodes see it: where it lies and what a prompt must say."""

    folder: Path  # output/apt_train/<subject>_<hash12>, in the layout of the command line's --output
    stem: str  # <subject>_<method>_<steps>: of the LoRA in output/loras and of the learned word's embedding
    subject: str
    class_word: str
    trigger: str  # what a prompt must say
    steps: int  # the run stands here
    owner: str = ""  # eight digits that tell its published files from those of another run

    @property
    def run_id(self) -> str:
        """The folder's name: what live messages and the routes call the run."""
        return self.folder.name


@dataclass(frozen=True)
class AptOptions:
    """What the options nodes set.

    `settings`: nested as `TrainConfig.to_dict`, only groups and fields that the nodes show. `prior_images`: class
    pictures, float (N, H, W, C) in [0, 1], or a list of them.
    """

    settings: dict[str, Any]
    background: str = "white"
    alpha_masks: bool = False
    mask_counts: str = "white"  # which part of a mask counts: white or black
    prior_images: Any = None

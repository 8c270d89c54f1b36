"""What `train()` tells its caller: plain data, and the exception by which a caller asks it to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy
    import torch
    from PIL import Image


class StopTraining(Exception):
    """Raised by the `on_event` callback to end a run normally: snapshot, export, `TrainResult(stopped=True)`."""


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step, as it also stands in `log.jsonl`.

    Terms are raw (before their weights and before 1 - gamma); None: not computed in this step.
    """

    step: int  # 1-based, of `total`
    total: int
    loss: float
    denoising: float
    stabilization: float | None
    alignment: float | None
    grad_norm: float | None  # before clipping; None: overflow under fp16, the step was skipped
    lr: float  # of the UNet's group
    timestep: list[int]
    gamma: list[float]  # one per bin
    grad_norm_terms: dict[str, float] | None = None
    prior_preservation: float | None = None
    drift: dict[str, float] | None = None  # the fields of `drift.Drift`; None: not measured here
    seconds: float = 0.0  # this step's wall time; not logged, so that logs of equal runs are equal

    def log_line(self) -> dict[str, Any]:
        """The fields of `log.jsonl`, in order."""
        line: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "step",
                "loss",
                "denoising",
                "stabilization",
                "alignment",
                "grad_norm",
                "lr",
                "timestep",
                "gamma",
            )
        }
        if self.grad_norm_terms is not None:
            line["grad_norm_terms"] = self.grad_norm_terms
        if self.prior_preservation is not None:
            line["prior_preservation"] = self.prior_preservation
        if self.drift is not None:
            line["drift"] = self.drift
        return line


@dataclass(frozen=True)
class PreviewEvent:
    """Samples drawn while training: one prior and one tuned picture per prompt, same seed."""

    step: int
    prompts: list[str]
    prior: list[Image.Image]
    tuned: list[Image.Image]


@dataclass(frozen=True)
class NoticeEvent:
    """One sentence a user should see: a warning, or what is being prepared."""

    text: str


@dataclass(frozen=True)
class BusyEvent:
    """Before each UNet call of what trains nothing. Nothing to show: it lets a caller stop there, too, by raising."""

    what: Literal["drift", "previews"]
    step: int  # that has ended; its own event may be still to come


Event = StepEvent | PreviewEvent | NoticeEvent | BusyEvent
Callback = Callable[[Event], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves in memory; the same is on disk when `output_dir` was given."""

    lora: dict[str, torch.Tensor]  # kohya names, with alpha
    embeddings: dict[str, torch.Tensor] | None  # clip_l (n, width) and, for SDXL, clip_g; None in word mode
    trigger: str  # what a prompt must say: `embedding:NAME_embedding`, in word mode `NAME class_word`
    steps_done: int
    stopped: bool
    run_dir: Path | None
    losses: list[float] = field(default_factory=list)
    gamma: numpy.ndarray | None = None  # (steps, bins)
    report: Path | None = None  # `report.md`; None: nothing was to be written, or it failed, which a notice has told

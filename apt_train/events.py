"""What `train()` tells its caller: plain data, and the exception by which a caller asks it to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .wording import counted, duration

if TYPE_CHECKING:
    import numpy
    import torch
    from PIL import Image


class StopTraining(Exception):
    """Raised by the `on_event` callback to end a run normally: snapshot, export, `TrainResult(stopped=True)`."""


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step, as it also stands in `log.jsonl`.

    `terms`: every term of the loss by name, raw (before its weight and before 1 - gamma); None: not computed in this
    step. `numbers`: whatever else is worth a curve in the report, by name; likewise.
    """

    step: int  # 1-based, of `total`
    total: int
    loss: float
    terms: dict[str, float | None]
    grad_norm: float | None  # before clipping; None: overflow under fp16, the step was skipped
    lr: float  # of the UNet's group
    timestep: list[int]  # of each sample
    gamma: list[float]  # one per bin
    grad_norm_terms: dict[str, float] | None = None
    drift: dict[str, float] | None = None  # the fields of `drift.Drift`; None: not measured here
    numbers: dict[str, float | None] = field(default_factory=dict[str, float | None])
    seconds: float = 0.0  # this step's wall time; not logged, so that logs of equal runs are equal
    level: list[float] = field(default_factory=list[float])  # the noise level of each sample, in [0, 1]

    def log_line(self) -> dict[str, Any]:
        """The fields of `log.jsonl`, in order; the terms stand among them under their names."""
        line = {"step": self.step, "loss": self.loss, **self.terms}
        line |= {name: getattr(self, name) for name in ("grad_norm", "lr", "timestep", "level", "gamma")}
        measured = {"grad_norm_terms": self.grad_norm_terms, "drift": self.drift}
        line |= {name: value for name, value in measured.items() if value is not None}
        return line | ({"numbers": self.numbers} if self.numbers else {})

    # The published terms, for callers that know them.

    @property
    def denoising(self) -> float:
        value = self.terms["denoising"]
        assert value is not None
        return value

    @property
    def stabilization(self) -> float | None:
        return self.terms.get("stabilization")

    @property
    def alignment(self) -> float | None:
        return self.terms.get("alignment")

    @property
    def prior_preservation(self) -> float | None:
        return self.terms.get("prior_preservation")


@dataclass(frozen=True)
class PlanEvent:
    """What is about to be trained, told once before the first step of a call.

    `memory`: bytes of the device at the peak, estimated; None: the model is too small to matter, or cannot be counted.
    `free`: bytes that the device has for it; None: it does not say. `seconds`: what the steps will take, tried; None:
    it was not tried.
    """

    steps: int  # of the whole run
    device: str
    dtype: str
    pictures: int
    captions: int  # pictures with a caption of their own
    side: int  # pixels of a square picture
    checkpointing: bool
    memory: int | None = None
    free: int | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        """For a line on a screen, its parts separated as in the node's other lines."""
        size = f"{counted(self.pictures, 'picture')} of about {self.side} x {self.side} pixels"
        parts = [f"{counted(self.steps, 'step')} in {self.dtype} on {self.device}"]
        if self.seconds is not None:  # early, as the classic editor shows two lines
            parts.append(f"about {duration(self.seconds)} without samples")
        parts.append(f"{size}, {self.captions} with a caption")
        if self.memory is not None and self.free is not None:
            parts.append(f"about {_gigabytes(self.memory)} GB of the {_gigabytes(self.free)} GB that are free")
        elif self.memory is not None:
            parts.append(f"about {_gigabytes(self.memory)} GB of memory")
        return " \u00b7 ".join([*parts, *(["with gradient checkpointing"] if self.checkpointing else [])])


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f}"


@dataclass(frozen=True)
class PreviewEvent:
    """Samples drawn while training: one prior and one tuned picture per prompt, same seed.

    `unseen`: whether the last prompt is the one that asks for what the pictures never show. `seconds`: that drawing and
    saving took; 0: they were drawn in an earlier session.
    """

    step: int
    prompts: list[str]
    prior: list[Image.Image]
    tuned: list[Image.Image]
    unseen: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class NoticeEvent:
    """One sentence a user should see. It is also kept in the run's folder (`notices.jsonl`) and stands in the report.

    Once in a run: what the pictures and settings gave rise to, a resumed run does not tell again.
    """

    text: str
    step: int = 0  # after which it was told; 0: before the first


Work = Literal["weights", "pictures", "variants", "captions", "model", "drift", "previews", "report", "check-up"]

_WORDS: dict[Work, str] = {
    "weights": "reading the weights",  # by the caller, before `train`
    "pictures": "encoding pictures",
    "variants": "encoding augmented pictures",
    "captions": "encoding captions",
    "model": "moving the model to the device",
    "drift": "measuring the drift from the prior",
    "previews": "drawing previews",
    "report": "writing the report",
    "check-up": "measuring the LoRA",
}


@dataclass(frozen=True)
class BusyEvent:
    """Before each piece of what trains nothing: a picture through the VAE, a UNet call. A caller may stop there, too.

    `StopTraining` raised before the first step ends the run at once: what it leaves is as it was before the call.
    """

    what: Work
    step: int  # that has ended; its own event may be still to come
    done: int = 0  # pieces of this work that have ended
    total: int = 0  # pieces that it has; 0: it is one

    @property
    def text(self) -> str:
        """For a line on a screen: `encoding augmented pictures 12 of 96`."""
        return f"{_WORDS[self.what]} {self.done + 1} of {self.total}" if self.total > 1 else _WORDS[self.what]


Event = PlanEvent | StepEvent | PreviewEvent | NoticeEvent | BusyEvent
Callback = Callable[[Event], None]
Busy = Callable[[Work, int, int], object]  # work, its pieces that have ended, and all of them


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves in memory; the same is on disk when `output_dir` was given."""

    lora: dict[str, torch.Tensor]  # kohya names, with alpha; empty where a stop came before the model was ready
    embeddings: dict[str, torch.Tensor] | None  # clip_l (n, width) and, for SDXL, clip_g; None in word mode
    trigger: str  # what a prompt must say: `embedding:NAME_embedding`, in word mode `NAME class_word`
    steps_done: int
    stopped: bool
    run_dir: Path | None
    losses: list[float] = field(default_factory=list[float])
    gamma: numpy.ndarray | None = None  # (steps, bins)
    report: Path | None = None  # `report.md`; None: nothing was to be written, or it failed, which a notice has told
    notices: list[str] = field(default_factory=list[str])  # every sentence told in the run, each once

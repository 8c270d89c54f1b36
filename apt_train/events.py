"""What `train()` reports to its caller, as plain data, and the exception by which the caller asks it to stop."""

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
    """One optimizer step, as recorded in `log.jsonl`.

    `terms`: the raw value of every loss term by name, before its weight and before 1 - gamma; None if it was not
    computed in this step. `numbers`: anything else worth a curve in the report, likewise.
    """

    step: int  # 1-based, of `total`
    total: int
    loss: float
    terms: dict[str, float | None]
    grad_norm: float | None  # before clipping; None: fp16 overflow, the step was skipped
    lr: float  # of the UNet's parameter group
    timestep: list[int]  # of each sample
    gamma: list[float]  # one per bin
    grad_norm_terms: dict[str, float] | None = None
    drift: dict[str, float] | None = None  # the fields of `drift.Drift`; None: not measured at this step
    numbers: dict[str, float | None] = field(default_factory=dict[str, float | None])
    seconds: float = 0.0  # wall time; not logged, so that equal runs write equal logs
    level: list[float] = field(default_factory=list[float])  # noise level of each sample, in [0, 1]

    def log_line(self) -> dict[str, Any]:
        """The fields of `log.jsonl`, in order, with each term under its own name."""
        line = {"step": self.step, "loss": self.loss, **self.terms}
        line |= {name: getattr(self, name) for name in ("grad_norm", "lr", "timestep", "level", "gamma")}
        measured = {"grad_norm_terms": self.grad_norm_terms, "drift": self.drift}
        line |= {name: value for name, value in measured.items() if value is not None}
        return line | ({"numbers": self.numbers} if self.numbers else {})

    # The published terms as attributes, for callers that know them.

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
    """What is about to be trained, sent once per call before the first step.

    `memory`: estimated peak device memory in bytes; None if the model is too small to matter or cannot be counted.
    `free`: bytes free on the device; None if it does not report them. `seconds`: predicted time of all steps, from a
    trial; None if there was no trial.
    """

    steps: int  # of the whole run
    device: str
    dtype: str
    pictures: int
    captions: int  # pictures that have their own caption
    side: int  # pixels of a square picture
    checkpointing: bool
    memory: int | None = None
    free: int | None = None
    seconds: float | None = None
    parts: tuple[int, int] = (1, 1)  # of the network, that are checkpointed, and all there are

    @property
    def text(self) -> str:
        """One line for a screen, with the separators of the node's other lines."""
        size = f"{counted(self.pictures, 'picture')} of about {self.side} x {self.side} pixels"
        parts = [f"{counted(self.steps, 'step')} in {self.dtype} on {self.device}"]
        if self.seconds is not None:  # placed early: the classic editor shows only two lines
            parts.append(f"about {duration(self.seconds)} without samples")
        parts.append(f"{size}, {self.captions} with a caption")
        if self.memory is not None:
            whole = "memory" if self.free is None else f"the {self.free / 1e9:.1f} GB that are free"
            parts.append(f"about {self.memory / 1e9:.1f} GB of {whole}")
        if self.checkpointing:
            some, all_ = self.parts
            parts.append(f"with gradient checkpointing{'' if some == all_ else f' in {some} of {all_} parts'}")
        return " \u00b7 ".join(parts)


@dataclass(frozen=True)
class PreviewEvent:
    """Samples drawn during training: per prompt one prior and one tuned picture from the same seed.

    `unseen`: whether the last prompt asks for something the training pictures never show. `seconds`: time spent
    drawing and saving; 0 if an earlier session drew them.
    """

    step: int
    prompts: list[str]
    prior: list[Image.Image]
    tuned: list[Image.Image]
    unseen: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class NoticeEvent:
    """One sentence the user should see. It is also kept in the run's folder (`notices.jsonl`) and in the report.

    Each is sent once per run: a resumed run does not repeat what the pictures and settings gave rise to.
    """

    text: str
    step: int = 0  # the last finished step; 0: before the first


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
    """Sent before each piece of work other than training steps, such as encoding a picture. A caller may stop here too.

    `StopTraining` raised before the first step ends the run at once and leaves everything as it was before the call.
    """

    what: Work
    step: int  # the last finished step; its StepEvent may still be to come
    done: int = 0  # finished pieces of this work
    total: int = 0  # all pieces of this work; 0: there is only one

    @property
    def text(self) -> str:
        """One line for a screen: `encoding augmented pictures 12 of 96`."""
        return f"{_WORDS[self.what]} {self.done + 1} of {self.total}" if self.total > 1 else _WORDS[self.what]


Event = PlanEvent | StepEvent | PreviewEvent | NoticeEvent | BusyEvent
Callback = Callable[[Event], None]
Busy = Callable[[Work, int, int], object]  # (work, finished pieces, all pieces)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a run returns; `output_dir`, if given, holds the same on disk."""

    lora: dict[str, torch.Tensor] = field(repr=False)  # kohya names, with alpha; empty if stopped while preparing
    # clip_l (n, width) and, for SDXL, clip_g; None in word mode
    embeddings: dict[str, torch.Tensor] | None = field(repr=False)
    trigger: str  # goes into the prompt: `embedding:NAME_embedding`, in word mode `NAME class_word`
    steps_done: int
    stopped: bool
    run_dir: Path | None
    losses: list[float] = field(default_factory=list[float], repr=False)
    gamma: numpy.ndarray | None = field(default=None, repr=False)  # (steps, bins)
    report: Path | None = None  # `report.md`; None if none was due, or writing it failed (see notices)
    notices: list[str] = field(default_factory=list[str])  # every notice of the run, each once

"""Work between the steps that takes its time: the caller is asked on the way, and a failure frees its memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator

import torch

from ..events import BusyEvent, Callback, Work
from .running import Run


class _Answer(BaseException):
    """Carries what a callback raised past those who handle failures of the work it interrupts."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextlib.contextmanager
def interruptible(run: Run, emit: Callback, what: Work, calls: int) -> Generator[None]:
    """Inside the block the caller is asked before every UNet call, of `calls`; what it raises comes out as it is."""
    done = itertools.count()

    def ask(*_: object) -> None:
        try:
            return emit(BusyEvent(what, run.steps_done, next(done), calls))
        except BaseException as error:
            answer = _Answer(error)
        raise answer  # here, where the two are not chained: what comes out would lead back to itself

    hook = run.components.unet.register_forward_pre_hook(ask)
    try:
        yield
    except _Answer as answer:
        raise answer.error from answer.error.__cause__
    finally:
        hook.remove()


def free_memory(device: torch.device) -> None:
    """Called behind the block that held what a failed sampling had taken."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""Long work between steps, such as previews: the caller can interrupt it, and a failure frees its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import InputError
from ..events import BusyEvent, Callback, Event, Work
from ..sample.sampler import calls_told
from ..wording import in_brackets
from .memory import empty_cache
from .running import Run
from .vae_visits import Stranded

Result = TypeVar("Result")


def attempted(
    run: Run, emit: Callback, what: Work, calls: int, work: Callable[[Callback], Result]
) -> tuple[Result | None, str]:
    """The result of work that training can do without; or None, and the reason why it failed.

    RuntimeError, MemoryError and InputError count as failing, unless the callback raised them. Anything else passes
    through, as does `Stranded`. A BusyEvent is sent before each of `calls` UNet calls. `work` receives the callback for
    its own events.
    """
    raised: list[BaseException] = []  # by the callback

    def ask(event: Event) -> None:
        try:
            emit(event)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with calls_told(run.components.unet, lambda made: ask(BusyEvent(what, run.steps_done, made, calls))):
            return work(ask), ""
    except (RuntimeError, MemoryError, InputError) as error:
        if error in raised or isinstance(error, Stranded):
            raise
        reason = in_brackets(error)
    empty_cache(run.device)  # outside the handler, which holds the failed work's tensors
    return None, reason

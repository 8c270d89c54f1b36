"""A run in the terminal: a progress bar, and signals as requests to stop."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from types import FrameType
from typing import NoReturn, TextIO

import psutil
import torch
from tqdm import tqdm

from ..events import BusyEvent, Event, NoticeEvent, PlanEvent, PreviewEvent, StepEvent, StopTraining
from ..wording import counted
from .interruption import Heard, Interrupted, handled
from .terminal import is_terminal, lossy

LINE_EVERY = 10.0  # seconds between lines of progress without a terminal


class Progress:
    """An `on_event` callback that shows loss, gamma, speed, time left and memory, on a single line in a terminal.

    Anything printed afterwards, including errors, starts on a new line.
    """

    def __init__(self, device: str | None = None, *, gamma: bool = True) -> None:
        """`gamma`: whether it is shown even at 0, where it stays if nothing measures it."""
        self.stop_requested = False
        self._device = device
        self._gamma = gamma
        file = lossy(sys.stderr)
        self._screen: _Terminal | _Lines = _Terminal(file) if is_terminal(file) else _Lines(file)

    def __call__(self, event: Event) -> None:
        if isinstance(event, (NoticeEvent, PlanEvent)):
            self.say(event.text)
        elif isinstance(event, PreviewEvent):
            self.say(f"Preview at step {event.step}: {counted(len(event.tuned), 'picture')}.")
        elif isinstance(event, StepEvent):
            gamma = f", gamma {sum(event.gamma) / len(event.gamma):.2f}" if self._gamma or any(event.gamma) else ""
            self._screen.step(event, f"loss {event.loss:.4f}{gamma}{self._memory()}")
        else:
            self._screen.busy(event)
        if self.stop_requested and not isinstance(event, NoticeEvent):
            raise StopTraining

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._screen.say(text)

    def _memory(self) -> str:
        """Peak CUDA memory in GB, what torch has of Apple's GPU, else the process's memory; empty if none is told."""
        try:
            if torch.cuda.is_available() and self._device != "cpu":
                held = torch.cuda.max_memory_allocated(self._device)
            elif torch.backends.mps.is_available() and self._device != "cpu":
                held = torch.mps.driver_allocated_memory()
            else:
                held = psutil.Process().memory_info().rss
        except (psutil.Error, OSError, RuntimeError, ValueError):
            return ""
        return f", {held / 1e9:.1f} GB"


class _Terminal:
    """A bar of steps, redrawn in place, with other work beneath it while that lasts."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._new: Callable[..., tqdm[NoReturn]] = partial(tqdm, file=file, dynamic_ncols=True)
        self._bar: tqdm[NoReturn] | None = None
        self._busy_line: tqdm[NoReturn] | None = None

    def say(self, text: str) -> None:
        tqdm.write(text, file=self._file)

    def busy(self, event: BusyEvent) -> None:
        if self._busy_line is None:
            self._busy_line = self._new(total=0, bar_format="{desc}", leave=False, miniters=0)
        self._busy_line.set_description_str(event.text, refresh=event.done == 0)
        self._busy_line.update(0)  # a few times a second, like every bar

    def step(self, event: StepEvent, values: str) -> None:
        self._end_busy()
        if self._bar is None:
            self._bar = self._new(total=event.total, initial=event.step - 1, unit="step")
        self._bar.set_postfix_str(values, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._end_busy()
        if self._bar is not None:
            self._bar.close()

    def _end_busy(self) -> None:
        if self._busy_line is not None:
            self._busy_line.close()
            self._busy_line = None


class _Lines:
    """The counterpart for a file or a pipe, where nothing can be redrawn: whole lines, few enough to read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began: tuple[float, int] | None = None  # start of the first step, and the number of steps before it
        self._work: str | None = None  # the work named in the last line that was not about a step
        self._last_line = 0.0
        self._pending: str | None = None  # the newest step, until a line has shown it

    def say(self, text: str) -> None:
        self._file.write(f"{text}\n")
        self._file.flush()

    def busy(self, event: BusyEvent) -> None:
        if event.what != self._work or self._is_time():
            self._work = event.what
            self._print(event.text)

    def step(self, event: StepEvent, values: str) -> None:
        is_first = self._began is None
        began, before = self._began = self._began or (time.monotonic() - event.seconds, event.step - 1)
        line = tqdm.format_meter(
            event.step, event.total, time.monotonic() - began, unit="step", initial=before, postfix=values,
            bar_format="step {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )  # fmt: skip
        self._pending = line
        if is_first or event.step == event.total or self._is_time():
            self._print(line)

    def close(self) -> None:
        if self._pending is not None:
            self._print(self._pending)

    def _is_time(self) -> bool:
        return time.monotonic() - self._last_line >= LINE_EVERY

    def _print(self, line: str) -> None:
        self._last_line, self._pending = time.monotonic(), None
        self.say(line)


@contextlib.contextmanager
def stop_on_interrupt(progress: Progress, has_begun: Callable[[], bool] = lambda: True) -> Generator[None]:
    """Inside the block the first signal finishes the step and then stops; a second one aborts.

    Before the first step there is nothing to save, so the first signal aborts too. `has_begun`: whether that phase is
    over.
    """
    heard = Heard()

    def asked(number: int, frame: FrameType | None) -> None:
        is_first = heard.number is None
        if not heard.is_news(number):
            return
        progress.stop_requested = True
        if not (is_first and has_begun()):
            raise Interrupted(number)
        progress.say("Stopping after this step (Ctrl-C again to abort) ...")

    with handled(asked):
        yield

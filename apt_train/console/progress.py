"""The terminal's side of a run: a progress bar, and signals as a request to stop."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import psutil
import torch
from tqdm import tqdm

from ..events import BusyEvent, Event, NoticeEvent, PreviewEvent, StepEvent, StopTraining
from .interruption import Heard, Interrupted, handled
from .terminal import lossy


class Progress:
    """An `on_event` callback that draws loss, gamma, rate, time left and memory on one line."""

    def __init__(self, device: str | None = None) -> None:
        self.stop_requested = False
        self._device = device
        self._file = lossy(sys.stderr)
        self._bar: tqdm | None = None
        self._busy_line: tqdm | None = None  # beneath the bar, while something else than a step goes on

    def __call__(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            self.say(event.text)
        elif isinstance(event, PreviewEvent):
            self.say(f"Preview at step {event.step}: {len(event.tuned)} pictures.")
        elif isinstance(event, StepEvent):
            self._end_busy()
            self._show(event)
        else:
            self._show_busy(event)
        if self.stop_requested and not isinstance(event, NoticeEvent):
            raise StopTraining

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_busy()
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=self._file)

    def _show_busy(self, event: BusyEvent) -> None:
        if self._busy_line is None:
            self._busy_line = tqdm(
                total=0, bar_format="{desc}", leave=False, miniters=0, file=self._file, dynamic_ncols=True
            )
        self._busy_line.set_description_str(event.text, refresh=event.done == 0)
        self._busy_line.update(0)  # a few times a second, like every bar

    def _end_busy(self) -> None:
        if self._busy_line is not None:
            self._busy_line.close()
            self._busy_line = None

    def _show(self, event: StepEvent) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=event.total, initial=event.step - 1, unit="step", file=self._file, dynamic_ncols=True
            )
        gamma = sum(event.gamma) / len(event.gamma)
        self._bar.set_postfix_str(f"loss {event.loss:.4f}, gamma {gamma:.2f}{self._memory()}", refresh=False)
        self._bar.update()

    def _memory(self) -> str:
        """In GB, the most that CUDA held, or what the process holds; empty where the system does not say."""
        try:
            if torch.cuda.is_available() and self._device != "cpu":
                held = torch.cuda.max_memory_allocated(self._device)
            else:
                held = psutil.Process().memory_info().rss
        except (psutil.Error, OSError, RuntimeError, ValueError):
            return ""
        return f", {held / 1e9:.1f} GB"


@contextlib.contextmanager
def stop_on_interrupt(progress: Progress, has_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Inside the block the first signal lets the step end and asks for a stop; a second one aborts.

    Before the first step there is nothing to save, so the first one aborts, too. `has_begun`: whether that is over.
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

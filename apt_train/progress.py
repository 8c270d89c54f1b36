"""The terminal's side of a run: a progress bar, and Ctrl-C as a request to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

import psutil
import torch
from tqdm import tqdm

from .events import BusyEvent, Event, NoticeEvent, PreviewEvent, StepEvent, StopTraining


class Progress:
    """An `on_event` callback that draws loss, gamma, rate, time left and memory on one line."""

    def __init__(self, device: str | None = None) -> None:
        self.stop_requested = False
        self._device = device
        self._bar: tqdm | None = None
        self._busy_line: tqdm | None = None  # beneath the bar, while something else than a step goes on

    def __call__(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            tqdm.write(event.text, file=sys.stderr)
        elif isinstance(event, PreviewEvent):
            tqdm.write(f"Preview at step {event.step}: {len(event.tuned)} pictures.", file=sys.stderr)
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

    def _show_busy(self, event: BusyEvent) -> None:
        if self._busy_line is None:
            self._busy_line = tqdm(
                total=0, bar_format="{desc}", leave=False, miniters=0, file=sys.stderr, dynamic_ncols=True
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
                total=event.total, initial=event.step - 1, unit="step", file=sys.stderr, dynamic_ncols=True
            )
        gamma = sum(event.gamma) / len(event.gamma)
        self._bar.set_postfix_str(f"loss {event.loss:.4f}, gamma {gamma:.2f}, {self._memory():.1f} GB", refresh=False)
        self._bar.update()

    def _memory(self) -> float:
        """GB: the most that CUDA held, or what the process holds."""
        if torch.cuda.is_available() and self._device != "cpu":
            return torch.cuda.max_memory_allocated(self._device) / 1e9
        return psutil.Process().memory_info().rss / 1e9


@contextlib.contextmanager
def stop_on_interrupt(progress: Progress) -> Iterator[None]:
    """Inside the block the first Ctrl-C lets the step end and asks for a stop; the second aborts."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        if progress.stop_requested:
            raise KeyboardInterrupt
        progress.stop_requested = True
        tqdm.write("Stopping after this step (Ctrl-C again to abort) ...", file=sys.stderr)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

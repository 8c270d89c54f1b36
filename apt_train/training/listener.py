"""Who hears of a run: the caller's callback, and what was told, kept in the run's folder.

In: passing events on, the step they belong to, a stop asked for too early. Not in: what is told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..events import BusyEvent, Callback, Event, NoticeEvent, StepEvent, StopTraining, Work
from ..names import snapshot_steps
from ..run.folder import RunFolder
from ..run.notices import Notices, read_notices


class Listener:
    """The caller's callback, and the notices told to it. A stop asked for at a notice waits for a step to end after.

    `resumed`: the folder of the run that goes on, whose steps and notices are there already.
    """

    def __init__(self, callback: Callback | None, resumed: Path | None) -> None:
        self._callback = callback
        self._stop = False
        self._keeps_in: Path | None = None
        self.step = max(snapshot_steps(resumed), default=0) if resumed else 0  # the last that has ended
        self.notices = Notices(read_notices(resumed) if resumed else [])

    def __call__(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            event = self._kept(event)
        elif isinstance(event, StepEvent):
            self.step = event.step
        if self._callback is None:
            return
        try:
            self._callback(event)
        except StopTraining:
            if not (isinstance(event, NoticeEvent) or (isinstance(event, BusyEvent) and event.what == "report")):
                raise
            self._stop = True

    def notice(self, text: str) -> None:
        """Of the model, the pictures and the settings, which stay the same when the run is resumed: told once."""
        if text not in self.notices.texts:
            self(NoticeEvent(text))

    def busy(self, what: Work, done: int, total: int) -> None:
        self(BusyEvent(what, self.step, done, total))

    def keep_notices(self, folder: RunFolder | None) -> None:
        """From now on write at once what is told. To be called after a step: a run without one leaves nothing."""
        if folder is not None:
            self._keeps_in = folder.path
            self.notices.write(folder.path)

    def _kept(self, event: NoticeEvent) -> NoticeEvent:
        event = replace(event, step=max(event.step, self.step))
        self.notices.add(event.text, event.step)
        if self._keeps_in is not None:
            self.notices.write(self._keeps_in)
        return event

    def stop_if_asked(self) -> None:
        if self._stop:
            raise StopTraining

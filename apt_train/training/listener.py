"""Passes a run's events to the caller's callback and keeps the notices in the run's folder.

In: passing events on, assigning them a step, deferring a stop that came too early. Not in: the events' content.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..events import BusyEvent, Callback, Event, NoticeEvent, StepEvent, StopTraining, Work
from ..names import snapshot_steps
from ..run.folder import RunFolder
from ..run.notices import Notices, read_notices


class Listener:
    """The caller's callback and the notices sent so far. A stop requested at a notice takes effect after a step.

    `resumed`: the folder of a run being resumed, whose steps and notices already exist.
    """

    def __init__(self, callback: Callback | None, resumed: Path | None) -> None:
        self._callback = callback
        self._stop = False
        self._keeps_in: Path | None = None
        self.step = max(snapshot_steps(resumed), default=0) if resumed else 0  # the last finished step
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
        """A notice about the model, the pictures or the settings. A resumed run does not repeat it."""
        if text not in self.notices.texts:
            self(NoticeEvent(text))

    def busy(self, what: Work, done: int, total: int) -> None:
        self(BusyEvent(what, self.step, done, total))

    def keep_notices(self, folder: RunFolder | None) -> None:
        """From now on write each notice at once. Call after a step: a run without one must leave no files."""
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

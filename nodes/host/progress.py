"""What the host shows while a node runs, and its Cancel button."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from .language import translated_line

if TYPE_CHECKING:
    from ...apt_train.events import Work

SAY_EVERY = 0.25  # seconds between lines about work other than steps
STOPPED = "stopped: queue again"
LONGEST = 8192  # pixels of a live picture's side; beyond 65500, JPEG fails in the host's sending loop and ends the host


def stop_if_cancelled() -> None:
    """Raise the host's own exception if the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


@contextlib.contextmanager
def cancelled_at_exit() -> Iterator[None]:
    """Inside the block the end of the host acts as Cancel, and its process ends after the block has.

    By Ctrl-C in its terminal, by SIGTERM (a container that is stopped, a desktop application that is closed) or by
    SIGHUP (a terminal that is closed). Only the host's main thread hears of them; without this the process would end in
    the middle of a step.
    """
    over = threading.Event()

    def end() -> None:
        logging.info("APT Train: saving the run. Ctrl-C once more ends without it.")
        comfy.model_management.interrupt_current_processing()
        while not over.wait(1):  # not longer at once, because Windows hears no Ctrl-C meanwhile
            pass

    atexit.register(end)
    try:
        with _ended_by_signals():
            yield
    finally:
        over.set()
        atexit.unregister(end)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the host as Ctrl-C does, unless it ignores them or somebody else listens.

    Windows has no such signals: there a process that is ended is gone at once.
    """
    loop, signals = PromptServer.instance.loop, () if os.name == "nt" else (signal.SIGTERM, signal.SIGHUP)
    heard = [one for one in signals if signal.getsignal(one) is signal.SIG_DFL]
    for one in heard:
        loop.call_soon_threadsafe(loop.add_signal_handler, one, _end_as_by_ctrl_c)
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed, because the host is ending
            for one in heard:
                loop.call_soon_threadsafe(loop.remove_signal_handler, one)


def _end_as_by_ctrl_c() -> None:
    raise KeyboardInterrupt


def prompt_id() -> str:
    """The id of the prompt being executed; empty outside one."""
    context = get_executing_context()
    return context.prompt_id if context is not None else ""


def throttled_progress(say: Callable[[str], object], what: Work) -> Callable[[int, int], None]:
    """A function to call before each piece of work; it reacts to Cancel and reports progress a few times a second."""
    from ...apt_train.events import BusyEvent

    last = -SAY_EVERY

    def at_piece(done: int, total: int) -> None:
        nonlocal last
        stop_if_cancelled()
        if time.monotonic() - last >= SAY_EVERY:
            last = time.monotonic()
            say(BusyEvent(what, 0, done, total).text)

    return at_piece


class NodeProgress:
    """Progress bar, picture and line of text of one node."""

    def __init__(self, node_id: str, total: int) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(total, node_id)

    def show(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        """Move the bar, and show a picture on the node if given."""
        # The third entry is the length the host scales the longer side to; the picture's own keeps letters sharp.
        preview: Any = None if picture is None else ("JPEG", picture.convert("RGB"), min(LONGEST, max(picture.size)))
        self._bar.update_absolute(done, total, preview)

    def say(self, text: str) -> None:
        """Replace the line of text on the node; its parts are separated by ` · `.

        Only the page that queued the prompt gets it: others would show it on their own node of the same number.
        """
        server = PromptServer.instance
        server.send_progress_text(translated_line(text), self._node_id, sid=server.client_id)

    @contextlib.contextmanager
    def tells_cancel(self) -> Iterator[None]:
        """Inside the block Cancel leaves a line that says so, instead of one about work that goes on no more."""
        try:
            yield
        except comfy.model_management.InterruptProcessingException:
            self.say(STOPPED)
            raise

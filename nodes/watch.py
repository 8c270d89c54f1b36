"""What a user sees while a run trains: progress with the time left, a live picture, a line of text; and Cancel.

In: turning the trainer's events into what the node shows. Not in: the monitor's curves (`live`), drawing
(`apt_train.report.live_images`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
from PIL import Image

from ..apt_train.config import TrainConfig
from ..apt_train.events import BusyEvent, Event, NoticeEvent, PlanEvent, PreviewEvent, StepEvent
from ..apt_train.names import EMBEDDING
from ..apt_train.report.filmstrip import draw_filmstrip
from ..apt_train.report.live_images import heat_image, loss_image
from ..apt_train.run.notices import read_notices
from ..apt_train.wording import counted, duration
from .host.progress import SAY_EVERY, NodeProgress, prompt_id, stop_if_cancelled
from .live import LiveRun, host_sender
from .node_picture import header_of, sample_sheet, small_strip, stacked
from .run_store import gamma_and_losses, newest_drift, newest_samples, steps_done
from .wires import AptRun

PICTURE_EVERY = 1.0  # seconds between live pictures
CHART, HEIGHT = 480, 256  # pixels: the live picture's chart
STRIP_HEIGHT = 150  # pixels: height of the chart beneath samples


class Watch:
    """The trainer's callback during one run; also reports to the browser how the run ended."""

    def __init__(self, run: AptRun, config: TrainConfig, node_id: str, preset: str) -> None:
        self._config, self._preset = config, preset
        self._progress = NodeProgress(node_id, config.steps)
        self._live = _live_run(run, config, node_id)
        self._step = steps_done(run.folder)
        self._so_far = replace(run, steps=self._step)
        self._curves = _Curves(config, *gamma_and_losses(self._so_far))
        self._began: tuple[float, int] | None = None  # end time and number of this session's first step
        self._samples = newest_samples(run.folder, self._step)
        self._strip = draw_filmstrip(run.folder, config)
        self._drift: dict[str, float] | None = None
        self._last_picture = 0.0
        self._busy, self._last_busy = "", 0.0
        self._notices = {notice.text for notice in read_notices(run.folder)}

    def __enter__(self) -> Watch:
        self._progress.show(self._step, self._config.steps)  # raises if Cancel was pressed already
        begins = "getting ready" if not self._step else f"going on after step {self._step}"
        self._progress.say(" · ".join(filter(None, [header_of(self._preset, self._config), begins])))
        self._live.start(self._step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        ended: Literal["done", "stopped", "failed"] = "done"
        if error is not None:
            ended = "failed" if isinstance(error, Exception) and "Interrupt" not in type(error).__name__ else "stopped"
        self._live.finish(ended, self._step)
        if ended == "stopped":
            usable = self._step < self._config.steps and not self._config.reads_total_steps
            line = stopped_line(self._step, usable=usable)
            self._progress.say(" · ".join([line, *notices_part(len(self._notices))]))

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            self._on_step(event)
        elif isinstance(event, PreviewEvent):
            self._samples, self._strip = event, draw_filmstrip(self._so_far.folder, self._config)
            self._draw()
        elif isinstance(event, NoticeEvent):
            self._on_notice(event)
        elif isinstance(event, PlanEvent):
            self._progress.say(event.text)
        else:
            self._on_busy(event)
        stop_if_cancelled()

    def _on_notice(self, event: NoticeEvent) -> None:
        logging.info("APT Train: %s", event.text)
        self._progress.say(event.text)
        self._notices.add(event.text)
        self._live.notice(event.text, event.step)

    def _on_busy(self, event: BusyEvent) -> None:
        self._step = max(self._step, event.step)
        now = time.monotonic()
        if self._busy != event.what or now - self._last_busy >= SAY_EVERY:
            self._busy, self._last_busy = event.what, now
            self._progress.say(" · ".join([event.text, *notices_part(len(self._notices))]))

    def _on_step(self, event: StepEvent) -> None:
        self._step, self._busy = event.step, ""
        if self._began is None:  # not earlier: the trainer may have dropped drift measured on other prompts
            self._drift = newest_drift(self._so_far)
        self._curves.gamma.append(event.gamma)
        self._curves.losses.append(event.loss)
        left = self._seconds_left(event)
        self._live.step(event, left)
        self._drift = event.drift or self._drift
        seconds = self._samples.seconds if self._samples else 0.0
        line = line_of(event, left, measured=self._curves.measured, drift=self._drift, sampling=seconds)
        self._progress.say(" · ".join([line, *notices_part(len(self._notices))]))
        if time.monotonic() - self._last_picture > PICTURE_EVERY or event.step == event.total:
            self._draw()
        else:
            self._progress.show(event.step, event.total)

    def _seconds_left(self, event: StepEvent) -> float | None:
        """Estimated from the mean of this session's steps, including previews and encoding; None at its first step."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, event.step
            return None
        began, first = self._began
        return (now - began) / (event.step - first) * (event.total - event.step)

    def _draw(self) -> None:
        picture = _composed(header_of(self._preset, self._config), self._curves, self._samples, self._strip)
        self._progress.show(self._step, self._config.steps, picture)
        self._last_picture = time.monotonic()


def tell_found(run: AptRun, config: TrainConfig, node_id: str) -> None:
    """Tell the monitors about a run that needed no training, because it is now its node's run."""
    _live_run(run, config, node_id).found(run.steps)


def _live_run(run: AptRun, config: TrainConfig, node_id: str) -> LiveRun:
    return LiveRun(
        run_id=run.run_id, node_id=node_id, prompt_id=prompt_id(), total=config.steps, bins=config.apt.bins,
        send=host_sender(),
    )  # fmt: skip


def say_finished(node_id: str, run: AptRun, trigger: str, trained: bool, *, by_itself: bool = False) -> None:
    """The last line on the node: the words a prompt needs, and where the run is. `by_itself`: it ended early."""
    how = f"{'done' if trained else 'found, not trained again'}: {counted(run.steps, 'step')}"
    alone = f", not {run.subject}" if trigger.startswith(EMBEDDING) else ""
    told = notices_part(len(read_notices(run.folder)))
    # In this order, because the classic editor shows only two lines.
    ended = ["stopped by itself"] if by_itself else []
    parts = [how, *ended, *told, f"prompts say {trigger}{alone}", f"run {run.run_id}"]
    NodeProgress(node_id, run.steps).say(" · ".join(parts))


def stopped_line(step: int, *, usable: bool) -> str:
    """The result of Cancel, and how to continue. `usable`: whether a run of that many steps would be the same."""
    if not step:
        return "stopped before the first step: queue again to train"
    how = f", or set steps to {step} to use it as it is" if usable else ""
    return f"stopped after step {step}: queue again to go on{how}"


def notices_part(count: int) -> list[str]:
    """A part for a status line: the run's number of notices, if any."""
    return [counted(count, "notice")] if count else []


def picture_of(run: AptRun, config: TrainConfig, preset: str) -> Image.Image:
    """The live picture as it is at the run's end."""
    curves = _Curves(config, *gamma_and_losses(run))
    samples, strip = newest_samples(run.folder, run.steps), draw_filmstrip(run.folder, config)
    return _composed(header_of(preset, config), curves, samples, strip)


def line_of(
    event: StepEvent,
    seconds_left: float | None,
    *,
    measured: bool,
    drift: dict[str, float] | None = None,
    sampling: float = 0.0,
) -> str:
    """`step 120 of 2000 · loss 0.113 · gamma 0.42 · drift ratio 0.12 · 12 min left · samples took 14 s`.

    gamma, if measured, is the mean over the bins; `drift`: the last measurement; `sampling`: seconds that the newest
    samples took.
    """
    parts = [f"step {event.step} of {event.total}", f"loss {event.loss:.3g}"]
    if measured:
        parts.append(f"gamma {sum(event.gamma) / len(event.gamma):.2f}")
    if drift is not None:
        parts.append(f"drift ratio {drift['ratio']:.2f}")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    if sampling:
        parts.append(f"samples took {duration(sampling)}")
    return " · ".join(parts)


@dataclass(frozen=True)
class _Curves:
    """The data of a run's chart: gamma and loss by step."""

    config: TrainConfig
    gamma: list[list[float]]
    losses: list[float]

    @property
    def measured(self) -> bool:
        """Whether there is a gamma that means anything."""
        return bool(self.gamma) and self.config.indicator_measured(self.gamma[-1])

    def chart(self, width: int, height: int) -> Image.Image:
        """The indicator's heat map, or the loss if the indicator is not measured."""
        if not self.measured:
            return loss_image(self.losses, width, height)
        return heat_image(np.array(self.gamma), width, height)


def _composed(header: str, curves: _Curves, samples: PreviewEvent | None, strip: Image.Image | None) -> Image.Image:
    """Samples, filmstrip and chart beneath each other; just the chart until there are samples."""
    if samples is None:
        return stacked(header, [curves.chart(CHART, HEIGHT)])
    large = sample_sheet(samples, curves.config)
    chart = curves.chart(large.width, STRIP_HEIGHT)
    return stacked(header, [large, *([] if strip is None else [small_strip(strip, large)]), chart])

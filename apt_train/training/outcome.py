"""A run and its results so far.

In: the numbers and flags that accumulate during a run. Not in: its files (`saving`), its measurements (`watching`),
its end (`finish`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from PIL import Image

from ..events import StepEvent
from ..run.folder import RunFolder
from .running import Run
from .stopping import Ending, ending


@dataclass
class Outcome:
    """A run and its results so far."""

    run: Run
    folder: RunFolder | None
    losses: list[float] = field(default_factory=list[float])
    gamma: list[list[float]] = field(default_factory=list[list[float]])
    measured: list[dict[str, float]] = field(default_factory=list[dict[str, float]])  # step and drift, per measurement
    unmeasured: list[int] = field(default_factory=list[int])  # steps that a resumed run had logged without drift
    stopped: bool = False
    prior_previews: list[Image.Image] | None = None  # drawn once: the prior does not change
    previews_failed: bool = False
    drift_failed: bool = False

    @property
    def ending(self) -> Ending | None:
        """Where a stopping rule ends the run; None: not yet, or there is no rule."""
        return ending(self.run.config.output.stop, self.measured)

    def add(self, event: StepEvent) -> None:
        self.remember(event.loss, list(event.gamma))
        if event.drift is not None:
            self.measured.append({"step": event.step, **event.drift})
        if self.folder is not None:
            self.folder.log(event)

    def remember(self, loss: float | None, gamma: list[float | None]) -> None:
        """Record a step's numbers; values missing from a damaged log become NaN."""
        self.losses.append(math.nan if loss is None else loss)
        self.gamma.append([math.nan if value is None else value for value in gamma])

"""What a run measures as it goes: the drift from the prior; and catching up on what an interrupted run still lacks.

In: when drift is due, training on if it fails; what the first losses say of the model. Not in: measuring
(`sample.drift`), the previews (`previewing`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict

from ..events import Callback, NoticeEvent, StepEvent
from .interruptible import attempted
from .outcome import Outcome
from .previewing import has_previews, try_previews

_FIRST = 20  # steps
_MOST_LOSS = 0.5  # the embedded model, read rightly and wrongly: 0.12 and 0.96, on pictures of mere noise 0.25 and 0.67


class FirstSteps:
    """Reports once if a run begins with a loss that only a model read as another kind has (ours).

    Most files do not say what their model predicts, and one read wrongly trains without an error. Not judged are a run
    that is resumed after its first step, and a model that predicts neither noise nor v, such as a flow model.
    """

    def __init__(self, prediction: str) -> None:
        self._is_judged = prediction in ("epsilon", "v_prediction")
        self._losses: list[float] = []

    def notice(self, event: StepEvent) -> str:
        """Takes each finished step; empty: nothing to say."""
        loss = event.terms.get("denoising")
        if not self._is_judged or loss is None or event.step != len(self._losses) + 1 or event.step > _FIRST:
            return ""
        self._losses.append(loss)
        mean = statistics.fmean(self._losses)
        if event.step < _FIRST or mean < _MOST_LOSS:
            return ""
        return (
            f"Over the first {_FIRST} steps the denoising loss is {mean:.2f}, which is high. If the untouched model's "
            "samples look wrong too, check what it predicts (prediction_type) and its VAE."
        )


def catch_up(outcome: Outcome, emit: Callback) -> None:
    """Measure and draw what the resumed step still lacks because the run was interrupted after its snapshot."""
    run, folder, output = outcome.run, outcome.folder, outcome.run.config.output
    if folder is None or not run.steps_done:
        return
    # If an earlier one is missing too, drift was off, could not be measured, or was dropped with its old prompts.
    if [step for step in outcome.unmeasured if is_due(step, output.snapshot_every)] == [run.steps_done]:
        drift = try_drift(outcome, emit)
        if drift is not None:
            folder.add_drift(run.steps_done, drift)
            outcome.measured.append({"step": run.steps_done, **drift})
    if is_due(run.steps_done, output.preview_every) and not has_previews(outcome, folder.previews):
        try_previews(outcome, emit)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps is due after this step; 0: never."""
    return every > 0 and step % every == 0


def try_drift(outcome: Outcome, emit: Callback) -> dict[str, float] | None:
    """How far the model has moved from the prior; None if that is not measured, or has failed."""
    run, watch = outcome.run, outcome.run.drift
    if watch is None or outcome.drift_failed:
        return None
    drift, reason = attempted(run, emit, "drift", watch.calls, lambda _: asdict(watch.measure()))
    if drift is not None and all(map(math.isfinite, drift.values())):
        return drift
    outcome.drift_failed = True
    why = reason or "the result is not a number"
    text = f"The drift from the prior could not be measured ({why}): training goes on without it."
    emit(NoticeEvent(text, run.steps_done))
    return None

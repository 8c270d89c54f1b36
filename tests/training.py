"""A small run, as the tests of the loop use it: three pictures, a tiny model, few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from apt_train.config import TrainConfig
from apt_train.data.dataset import ImageSet
from apt_train.events import Event, StepEvent, StopTraining, TrainResult
from apt_train.families.components import Components
from apt_train.settings_field import flat_values, nested
from apt_train.training import update
from apt_train.training.train import train
from tests.tiny import tiny_components

QUICK: dict[str, Any] = {
    "class_word": "toy",
    "steps": 4,
    "rank": 4,
    "learning_rate": 1e-2,
    "embedding_learning_rate": 1e-2,
    "batch_size": 2,
    "balance_every": 0,
    "temperature": 100.0,
    "augment_variants": 4,
    "preview_steps": 2,
    "unseen_prompt": "",
    "drift_prompts": ("a painting",),  # one of each kind to measure, at every snapshot: eight take four times as long
}


def quick_config(**settings: Any) -> TrainConfig:
    """A config from flat names: each setting finds its group."""
    unknown = settings.keys() - flat_values(TrainConfig(class_word="toy")).keys()
    assert not unknown, f"no setting: {unknown}"
    return TrainConfig.from_dict(nested({**QUICK, **settings}, TrainConfig))


def pictures(count: int = 3, seed: int = 0, height: int = 64, width: int = 64, **more: Any) -> ImageSet:
    """Pictures of noise, each different."""
    draws = torch.Generator().manual_seed(seed)
    return ImageSet.from_tensors([torch.rand(height, width, 3, generator=draws) for _ in range(count)], **more)


def run(components: Components | None = None, images: ImageSet | None = None, **arguments: Any) -> TrainResult:
    """`train()` with flat settings; arguments that are no setting go to `train` itself."""
    passed = {
        name: arguments.pop(name)
        for name in ("output_dir", "resume", "on_event", "prior_images", "record")
        if name in arguments
    }
    return train(
        components or tiny_components(), images or pictures(), quick_config(**arguments), device="cpu", **passed
    )


class Recorder:
    """An `on_event` callback that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def steps(self) -> list[StepEvent]:
        return [event for event in self.events if isinstance(event, StepEvent)]


def stopping(step: int) -> Callable[[Event], None]:
    """An `on_event` callback that stops the run after a step."""

    def stop(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            raise StopTraining

    return stop


def same_weights(first: TrainResult, second: TrainResult) -> bool:
    """Equal to the bit: LoRA and embedding."""
    pairs = [(first.lora, second.lora), (first.embeddings or {}, second.embeddings or {})]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def out_of_memory(monkeypatch: pytest.MonkeyPatch, *, at: int, times: int = 1) -> None:
    """In the backward pass of a step, as often."""
    original, left = update._backward, [times]

    def full(run_: Any, loss: torch.Tensor) -> None:
        if run_.steps_done == at and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(run_, loss)

    monkeypatch.setattr(update, "_backward", full)

"""Check-ups of every kind, made up: what the verdict has to find words for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from apt_train.lora_check.blocks import Block
from apt_train.lora_check.findings import AtStrength, CheckUp
from apt_train.lora_check.gain import Gain
from apt_train.lora_check.lora_file import LoraFile
from apt_train.lora_check.placing import Placed, Placement
from apt_train.lora_check.prompts import Prompts
from apt_train.lora_check.recommend import recommended
from apt_train.lora_check.subject import Subject


def check_ups() -> Iterator[CheckUp]:
    """Calm, held back, open-ended, empty, without pictures, with layers left out."""
    calm = parabola(1.0, 0.1)
    for points in (
        calm,
        parabola(1.0, 4.0),
        parabola(2.0, 0.1),
        [replace(point, subject=0.0, spill=0.0) for point in calm],
    ):
        yield made_up(points)
    blind = [replace(point, gain=None, alignment=None) for point in calm]
    yield made_up([replace(point, gain=None, spill=9.0) for point in calm])
    yield replace(made_up(blind), pictures=0, subject=Subject("toy", "toy"))
    unlearned = [replace(point, gain=Gain(0.0, 0.1, [0.0] * 10, [0.0] * 10), bare=0.9) for point in calm]
    misfits = Placement(made_up(calm).placement.placed, [f"lora_unet_{n}" for n in range(9)], ["narrow"], ["broken"])
    whole = made_up(calm).placement.placed * 2
    idle = [Block("up 0", 2, 0.1, 16.0, 3.0, unchanged=1)]
    yield replace(made_up(calm), placement=Placement(whole, [], []), blocks=idle)
    yield replace(made_up(calm), pictures=1)
    yield replace(made_up(unlearned), pictures=1)
    yield replace(made_up(unlearned), placement=misfits, lora=LoraFile("mine", {}, ["odd.key"]))


def parabola(best: float, spill: float) -> list[AtStrength]:
    """A gain that peaks at `best`, and a spill that grows with the square of the strength."""
    return [
        AtStrength(s, 1.0, 0.5, 0.1, 0.1, spill * s * s, 0.5, _gain(0.2 * (s / best) * (2 - s / best)), 0.9, 0.95)
        for s in (0.4, 0.6, 0.8, 1.0, 1.2)
    ]


def _gain(mean: float) -> Gain:
    return Gain(mean, 0.01, [mean] * 10, [0.5] * 10)


def made_up(points: list[AtStrength]) -> CheckUp:
    parts = {"up": torch.ones(4, 2), "down": torch.ones(2, 4), "alpha": torch.tensor(2.0)}
    placed = [Placed("lora_unet_x", "unet", "x", nn.Linear(4, 4), parts)]
    blocks = [Block("text encoder 1", 1, 0.02, None, None), Block("up 0", 1, 0.1, 16.0, 3.0)]
    return CheckUp(
        lora=LoraFile("mine", {"lora_unet_x": parts}), placement=Placement(placed, [], []), blocks=blocks,
        subject=Subject("toy", "sks toy"), points=points, recommendation=recommended(points),
        prompts=Prompts(["a {subject}"], ["a city"]), pictures=2, bins=10, source="a model",
    )  # fmt: skip

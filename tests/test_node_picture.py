"""The picture on the training node. Not here: when it is drawn, and the real host (`tests/host`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from apt_train.config import OutputConfig, TrainConfig
from apt_train.events import PreviewEvent

from .node_modules import node_module


@pytest.fixture(scope="module")
def picture() -> Iterator[Any]:
    with node_module("node_picture") as module:
        yield module


def asks(*prompts: str) -> TrainConfig:
    return TrainConfig(class_word="toy", output=OutputConfig(preview_prompts=prompts))


def samples(*prompts: str) -> PreviewEvent:
    drawn = [Image.new("RGB", (64, 64)) for _ in prompts]
    return PreviewEvent(4, list(prompts), drawn, list(drawn))


def test_samples_keep_the_prompts_they_were_drawn_for(picture: Any) -> None:
    """Other prompts make no other run: the finished one is found, with the samples of before."""
    before, now = asks("a {subject}", "a dog"), asks("a {subject} in snow", "a cat")
    drawn = samples(*before.sampled_prompts)
    assert picture.sample_sheet(drawn, now) == picture.sample_sheet(drawn, before)
    assert picture.sample_sheet(drawn, now) != picture.sample_sheet(samples(*now.sampled_prompts), now)
    assert picture.sample_sheet(samples(""), now) == picture.sample_sheet(samples(""), before), "of an older version"


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_of_many_samples_the_last_is_among_those_shown(picture: Any, count: int) -> None:
    last = samples(*(f"a toy {k}" for k in range(count)))
    last.tuned[-1] = Image.new("RGB", (64, 64), "red")
    side = picture.SIDES[min(count, len(picture.SIDES)) - 1]
    colours = {colour: number for number, colour in picture.sample_sheet(last, asks()).getcolors(1 << 20) or []}
    assert colours[(255, 0, 0)] == side**2


def test_the_samples_say_after_which_step_they_were_drawn(picture: Any) -> None:
    drawn = samples("a {subject}")
    later = PreviewEvent(drawn.step + 1, drawn.prompts, drawn.prior, drawn.tuned)
    assert picture.sample_sheet(later, asks()) != picture.sample_sheet(drawn, asks())


@pytest.mark.parametrize(("strip", "shown"), [((90, 40), (90, 40)), ((200, 40), (100, 20)), ((50, 60), (41, 50))])
def test_a_filmstrip_is_no_wider_and_half_as_high_as_the_samples(
    picture: Any, strip: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert picture.small_strip(Image.new("RGB", strip), Image.new("RGB", (100, 100))).size == shown

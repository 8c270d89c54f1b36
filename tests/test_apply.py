"""A trained LoRA put back on a model draws what the live adapter drew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apt_train.errors import InputError
from apt_train.events import PreviewEvent
from apt_train.families.components import Components
from apt_train.sample.apply import personalized
from apt_train.sample.sampler import Drawing, Sampler
from apt_train.text.conditioning import Conditioner
from tests.tiny import tiny_components
from tests.training import Recorder, quick_config, run

TOY = quick_config()


def drawn(parts: Components, conditioner: Conditioner, prompt: str, *, tuned: bool) -> bytes:
    conditioning = conditioner.encode([prompt], tuned=tuned)
    nothing = conditioner.encode([""], tuned=False)
    sampler = Sampler(parts, (64, 64), "cpu", torch.float32)
    return sampler.draw(conditioning, nothing, Drawing(seed=0, steps=2, guidance=5.0))[0].tobytes()


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("settings", [{}, {"identifier_mode": "word", "targets": "attention+ff", "alpha": 2.0}])
def test_it_draws_what_the_run_drew(kind: str, settings: dict[str, Any]) -> None:
    parts, recorder = tiny_components(kind), Recorder()
    result = run(parts, preview_every=4, preview_prompts=("a {subject} on grass",), on_event=recorder, **settings)
    config = quick_config(**settings)
    preview = next(event for event in recorder.events if isinstance(event, PreviewEvent))
    with personalized(parts, result.lora, result.embeddings, config) as (conditioner, _):
        assert drawn(parts, conditioner, "a {subject} on grass", tuned=True) == preview.tuned[0].tobytes()
    with personalized(parts, result.lora, result.embeddings, config) as (conditioner, _):
        pass
    assert drawn(parts, conditioner, "a {subject} on grass", tuned=False) == preview.prior[0].tobytes(), "still on"


def test_a_lora_or_an_embedding_of_another_model_or_another_word_is_refused() -> None:
    result = run()
    with (
        pytest.raises(InputError, match="does not fit"),
        personalized(tiny_components("sdxl"), result.lora, result.embeddings, TOY),
    ):
        pass
    with (
        pytest.raises(InputError, match="no rows for this model's clip_l"),
        personalized(tiny_components(), result.lora, {"clip_l": torch.zeros(1, 7)}, TOY),
    ):
        pass
    with (
        pytest.raises(InputError, match="1 row of"),
        personalized(tiny_components(), result.lora, result.embeddings, quick_config(class_word="teddy bear")),
    ):
        pass


def test_a_part_of_a_lora_is_refused_and_leaves_the_model_alone() -> None:
    parts, result = tiny_components(), run()
    some = {name: tensor for name, tensor in result.lora.items() if "up_blocks" in name}
    with pytest.raises(InputError, match="is missing"), personalized(parts, some, None, TOY):
        pass
    assert not any("lora" in name for name, _ in parts.unet.named_parameters())

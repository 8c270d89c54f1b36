"""The trainer against `reference.py`: the same losses, gammas and weights, over all that the method can be set to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from apt_train.adapter.adapter import adapter_of
from apt_train.families.components import Components
from apt_train.families.noise import PredictionType
from apt_train.families.sd.layer_names import unet_names
from apt_train.training import streams
from tests.reference import reference
from tests.tiny import scaled_linear_schedule, tiny_components
from tests.training import Recorder, pictures, quick_config, run

LONG = [  # up to three chunks of the tiny tokenizer's 16
    "a photo of {subject} on grass with a red hat and a blue ball in the snow , a big green dog and {subject} on sand",
    "in the park a small ball with a hat on grass and a painting of {subject}",
    "my {subject} !",
]
SHORT = ["a photo of {subject} on grass", "my {subject} in the snow with a red hat", "{subject} !"]
STRONG = {"dist_weight": 0.5, "attn_weight": 0.7}
AUGMENTED = {"bins": 1, "temperature": 1e4, "p_max": 1.0, "max_zoom": 2.5, "adaptive_loss_weight": False, "steps": 6}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {"temperature": 1000.0, "batch_size": 1, "epsilon": 1e-8},
    "apt": {**STRONG, "captions": LONG, "class_word": "teddy bear", "init_word": "toy", "accumulation": 2, "bins": 3},
    "word": {**STRONG, "captions": LONG, "class_word": "teddy bear", "identifier_mode": "word", "identifier": "zwx",
             "lazy_prior": 2, "attn_schedule": "indicator", "masks": True, "ema": 0.4,
             "temperature": "auto"},
    "sdxl": {**STRONG, "kind": "sdxl", "captions": SHORT, "init_word": "small toy", "prediction": "v_prediction",
             "zero_snr": True, "dist_layers": "all", "attn_layers": "mid+up"},
    "sdxl-raw": {**STRONG, "kind": "sdxl", "captions": LONG, "dist_mode": "raw", "attn_schedule": "linear"},
    "augmented": {**STRONG, **AUGMENTED, "mask_fill": True, "zero_snr": True},
    "dreambooth": {"method": "dreambooth", "preservation": True, "prior_preservation_weight": 0.6, "accumulation": 2,
                   "beta1": 0.7, "beta2": 0.9, "weight_decay": 5.0, "max_grad_norm": 0.01},
    "dco": {"method": "dco", "dco_beta": 300.0, "prediction": "v_prediction", "masks": True, "preservation": True},
    "tlora": {"method": "tlora", "rank": 7, "min_rank": 2, "alpha": 3.0, "batch_size": 3},
}  # fmt: skip


def model(kind: str, prediction: PredictionType, zero_snr: bool) -> Components:
    return replace(tiny_components(kind), schedule=scaled_linear_schedule(1000, prediction, zero_snr))


def random_masks(count: int) -> list[torch.Tensor]:
    return [torch.rand(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("case", CASES)
def test_the_trainer_equals_the_page(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epsilon": 1e-5, "snapshot_every": 0, **CASES[case]}  # a small epsilon would enlarge rounding
    captions = settings.pop("captions", ["a photo of {subject}"] * 3)
    of_model = settings.pop("kind", "sd15"), settings.pop("prediction", "epsilon"), settings.pop("zero_snr", False)
    masks = random_masks(3) if settings.pop("masks", False) else None
    classes = pictures(2, seed=1) if settings.pop("preservation", False) else None
    drawn, chances, seen, draw = {"subject": []}, [], Recorder(), streams.draw_samples

    def watched(bank: Any, p_aug: torch.Tensor, key: Any, **more: Any) -> Any:
        samples = draw(bank, p_aug, key, **more)
        drawn.setdefault(key[1], []).append(samples)
        chances.extend([p_aug.tolist()] if key[1] == "subject" else [])
        return samples

    monkeypatch.setattr(streams, "draw_samples", watched)
    images = pictures(captions=captions, masks=masks)
    result = run(model(*of_model), images, prior_images=classes, on_event=seen, **settings)

    config, parts = quick_config(**settings), model(*of_model)
    initial = adapter_of(model(*of_model).unet, config.adapter, parts.family, None).state()
    expected = list(reference(parts, config, initial, captions, ["a photo of toy"] * 2, drawn))
    trained = expected.pop()
    assert len(expected) == len(seen.steps) == len(chances) == config.steps
    for step, (page, event, p_aug) in enumerate(zip(expected, seen.steps, chances, strict=True)):
        terms = {name: value for name, value in event.terms.items() if value is not None}
        found = {**terms, "loss": event.loss, "grad_norm": event.grad_norm, "gamma": event.gamma, "p_aug": p_aug}
        assert found.keys() == page.keys()
        for name, value in found.items():
            assert value == pytest.approx(page[name], rel=1e-3, abs=1e-5), (step, name)

    names = unet_names(parts.unet)
    for name, weight in result.lora.items():
        layer, _, part = name.partition(".")
        if part != "alpha":
            lora = trained["lora"][f"{names[layer]}.{'lora_A' if 'down' in part else 'lora_B'}.weight"]
            torch.testing.assert_close(weight, lora.detach(), rtol=0, atol=1e-4)  # they moved by some 0.04
    rows = list((result.embeddings or {}).values())
    for ours, row in zip(rows, trained["rows"], strict=True):
        torch.testing.assert_close(ours, row.detach(), rtol=0, atol=1e-4)
    assert case != "augmented" or any(sample.variant for samples in drawn["subject"] for sample in samples)

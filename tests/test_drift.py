"""The drift from the prior: against a plain loop, what moves it, and that training neither needs nor feels it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_train.adapter import adapter_parameters, add_adapter
from apt_train.components import Components
from apt_train.conditioning import Conditioner
from apt_train.config import OutputConfig
from apt_train.drift import GUIDANCE, SEED, STEPS, Drift, DriftWatch, unrelated_prompts
from apt_train.errors import InputError
from apt_train.events import NoticeEvent
from apt_train.identifier import Identifier
from apt_train.sample import initial_noise
from tests.tiny import tiny_components
from tests.training import Recorder, run, same_weights

UNRELATED = ["a city on grass", "a dog in snow"]


def watched(parts: Components, **changes: Any) -> tuple[DriftWatch, Identifier]:
    identifier = Identifier.from_init_word(parts.text_encoders, "toy")
    conditioner = Conditioner(parts.text_encoders, identifier, class_word="toy", name="toy_subject")
    settings = {"side": 32, "rows": 3, "device": torch.device("cpu"), "dtype": torch.float32, **changes}
    return DriftWatch(parts, conditioner, "a photo of {subject}", UNRELATED, **settings), identifier


def moved_adapter(parts: Components, size: float = 0.02) -> None:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter_parameters(parts.unet).values():
            parameter += size * torch.randn(parameter.shape, generator=draws)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_model_that_has_not_moved_has_not_drifted(kind: str) -> None:
    parts = tiny_components(kind)
    add_adapter(parts.unet, rank=4, alpha=4, seed=0)
    watch, identifier = watched(parts)
    assert watch.measure() == Drift(0.0, 0.0) and watch.measure().ratio == 0.0
    with torch.no_grad():
        for rows in identifier.rows:
            rows.mul_(-1)
    word_alone = watch.measure()
    assert word_alone.subject > 0 and word_alone.unrelated == 0, "other prompts do not read the word"
    moved_adapter(parts)
    both = watch.measure()
    assert both.unrelated > 0 and both.ratio == both.unrelated / both.subject


@torch.no_grad()
def reference(parts: Components, prompt: str, place: int) -> float:
    """The same for one prompt without the subject, written out; `place`: whose noise it starts from."""
    prior_unet = tiny_components().unet  # the same weights, never trained
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0).float()
    encoder, tokenizer = parts.text_encoders[0].model, parts.text_encoders[0].tokenizer

    def text(words: str) -> torch.Tensor:
        return encoder(tokenizer(words, padding="max_length", return_tensors="pt").input_ids).last_hidden_state

    def prior(x: torch.Tensor, t: int, words: str) -> torch.Tensor:
        with torch.no_grad():
            return prior_unet(x, t, text(words)).sample

    x, found = initial_noise(SEED, place, (4, 8, 8))[None], []
    times = [901 - 100 * i for i in range(STEPS)]
    for i, t in enumerate(times):
        plain, empty = prior(x, t, prompt), prior(x, t, "")
        if i % 2:
            found.append((parts.unet(x, t, text(prompt)).sample - plain).square().mean())
        epsilon = empty + GUIDANCE * (plain - empty)
        clean = (x - (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_bar[t].sqrt()
        then = alpha_bar[times[i + 1] if i + 1 < len(times) else 0]
        x = then.sqrt() * clean + (1 - then).sqrt() * epsilon
    return float(torch.stack(found).mean())


def test_drift_is_the_difference_along_the_priors_own_way() -> None:
    parts = tiny_components()
    add_adapter(parts.unet, rank=4, alpha=4, seed=0)
    parts.unet.eval()
    moved_adapter(parts)
    watch, _ = watched(parts)
    expected = sum(reference(parts, prompt, place) for place, prompt in enumerate(UNRELATED)) / len(UNRELATED)
    assert watch.measure().unrelated == pytest.approx(expected, rel=1e-4)


def test_batches_make_no_difference_and_the_modes_stay() -> None:
    parts = tiny_components()
    add_adapter(parts.unet, rank=4, alpha=4, dropout=0.5, seed=0)
    moved_adapter(parts)
    parts.unet.train()
    trains = {name: parameter.requires_grad for name, parameter in parts.unet.named_parameters()}
    one, four = (watched(parts, rows=rows)[0].measure() for rows in (1, 4))
    assert one.subject == pytest.approx(four.subject, rel=1e-4) and one.unrelated == pytest.approx(
        four.unrelated, rel=1e-4
    )
    assert parts.unet.training
    assert trains == {name: parameter.requires_grad for name, parameter in parts.unet.named_parameters()}


# -- in a run


def drifts(**settings: Any) -> list[dict[str, float] | None]:
    recorder = Recorder()
    run(on_event=recorder, **settings)
    return [event.drift for event in recorder.steps]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", ["apt", "tlora"])
def test_a_run_measures_it_at_every_snapshot(kind: str, method: str) -> None:
    found = drifts(components=tiny_components(kind), method=method, steps=4, snapshot_every=2)
    assert [drift is not None for drift in found] == [False, True, False, True]
    assert all(drift["subject"] > 0 and drift["unrelated"] > 0 for drift in found if drift)


def test_its_settings_decide_on_what_it_is_measured() -> None:
    (plain,), (other,) = drifts(steps=1, snapshot_every=1), drifts(steps=1, snapshot_every=1, drift_prompts=("a dog",))
    assert plain and other and plain["unrelated"] != other["unrelated"]
    assert drifts(steps=1, snapshot_every=1, watch_drift=False) == [None]
    assert drifts(steps=1, snapshot_every=0) == [None]
    assert drifts(steps=1, snapshot_every=1, drift_prompts=("a toy", "my toy")) == [None], "they name the class"
    assert unrelated_prompts(("a Toy here", "toys", "a toybox", "snow"), "toy") == ["toys", "a toybox", "snow"]
    assert unrelated_prompts(OutputConfig().drift_prompts, "toy") == list(OutputConfig().drift_prompts)
    with pytest.raises(InputError, match="leave the subject out"):
        OutputConfig(drift_prompts=("a {subject}",))


def test_no_weight_and_no_log_but_its_own_is_changed(tmp_path: Path) -> None:
    plain = run(snapshot_every=1, watch_drift=False, output_dir=tmp_path / "plain")
    watched = run(snapshot_every=1, output_dir=tmp_path / "watched")
    assert same_weights(plain, watched)
    lines = [json.loads(line) for line in (tmp_path / "watched" / "log.jsonl").read_text().splitlines()]
    assert all(line.pop("drift")["subject"] > 0 for line in lines)
    assert lines == [json.loads(line) for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_measures_what_an_unbroken_one_does(tmp_path: Path) -> None:
    run(steps=2, snapshot_every=1, output_dir=tmp_path / "parts")
    run(steps=4, snapshot_every=1, output_dir=tmp_path / "parts", resume=True)
    run(steps=4, snapshot_every=1, output_dir=tmp_path / "whole")
    assert (tmp_path / "parts" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


@pytest.mark.parametrize("failure", [RuntimeError("MPS backend out of memory"), Drift(float("nan"), 0.1)])
def test_where_it_cannot_be_measured_training_goes_on(monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    def fail(_: Any) -> Drift:
        if isinstance(failure, Drift):
            return failure
        raise failure

    monkeypatch.setattr(DriftWatch, "measure", fail)
    recorder = Recorder()
    assert run(steps=3, snapshot_every=1, on_event=recorder).steps_done == 3
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent) and "drift" in event.text]
    assert len(told) == 1 and ("out of memory" in told[0] or "no number" in told[0])
    assert [event.drift for event in recorder.steps] == [None] * 3


def test_a_run_broken_off_while_measuring_has_logged_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> Drift:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DriftWatch, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(steps=4, snapshot_every=2, output_dir=tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert run(steps=4, snapshot_every=2, output_dir=tmp_path, resume=True).steps_done == 4

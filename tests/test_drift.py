"""The drift from the prior: against a plain loop, what moves it, and that training neither needs nor feels it."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, OutputConfig
from apt_train.console.progress import Progress, stop_on_interrupt
from apt_train.errors import InputError
from apt_train.events import BusyEvent, Event, NoticeEvent, StopTraining
from apt_train.families.components import Components
from apt_train.sample.drift import Drift, DriftWatch, drift_of, unrelated_prompts
from apt_train.sample.sampler import Sampler, initial_noise
from apt_train.sample.trajectories import EVERY, GUIDANCE, SEED, STEPS
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from tests.tiny import tiny_components
from tests.training import Recorder, pictures, run, same_weights

pytestmark = pytest.mark.usefixtures("no_report")

UNRELATED = ["a city on grass", "a dog in snow"]
CAPTIONS = ["a photo of {subject}", "a photo of {subject} on grass"]


def watched(parts: Components, init_word: str = "toy", **changes: Any) -> tuple[DriftWatch, Identifier]:
    identifier = Identifier.from_init_word(parts.text_encoders, init_word)
    conditioner = Conditioner(parts.text_encoders, identifier, class_word="toy", name="toy_subject")
    sampler = replace(Sampler(parts, (32, 32), torch.device("cpu"), torch.float32, batch_size=3), **changes)
    return DriftWatch(sampler, Adapter(parts.unet), conditioner, CAPTIONS, init_word, UNRELATED), identifier


def moved_adapter(parts: Components, size: float = 0.02) -> None:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in Adapter(parts.unet).parameters.values():
            parameter += size * torch.randn(parameter.shape, generator=draws)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("init_word", ["toy", "dog"])
def test_a_model_that_has_not_moved_has_not_drifted(kind: str, init_word: str) -> None:
    """Whatever its word was initialised with."""
    parts = tiny_components(kind)
    add_adapter(parts.unet, AdapterConfig(rank=4, alpha=4), seed=0)
    watch, identifier = watched(parts, init_word)
    assert watch.measure() == Drift(0.0, 0.0, 0.0)
    with torch.no_grad():
        for rows in identifier.rows:
            rows.mul_(-1)
    word_alone = watch.measure()
    assert word_alone.subject > 0 and word_alone.unrelated == 0, "other prompts do not read the word"
    moved_adapter(parts)
    both = watch.measure()
    assert both.unrelated > 0 and both.ratio > 0


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_in_half_precision_rounding_adds_a_little_and_nothing_before_the_first_step(kind: str) -> None:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        parts = tiny_components(kind)
        for module in (parts.unet, *(encoder.model for encoder in parts.text_encoders)):
            torch.nn.Module.to(module, dtype)
        add_adapter(parts.unet, AdapterConfig(rank=4, alpha=4), seed=0)
        watch, _ = watched(parts, dtype=dtype)
        assert watch.measure() == Drift(0.0, 0.0, 0.0)
        moved_adapter(parts, 0.2)
        found[dtype] = watch.measure()
    exact, rounded = found.values()
    assert rounded != exact
    assert rounded.subject == pytest.approx(exact.subject, rel=0.2)
    assert rounded.unrelated == pytest.approx(exact.unrelated, rel=0.2)


def test_the_ratio_is_taken_at_each_noise_level() -> None:
    found = drift_of(torch.tensor([1.0, 100.0, 0.0]), torch.tensor([0.5, 10.0, 7.0]))
    assert (found.ratio, found.subject) == (pytest.approx(0.3), pytest.approx(101 / 3))
    assert drift_of(torch.zeros(2), torch.ones(2)).ratio == 0.0


@torch.no_grad()
def reference(parts: Components, prior_text: str, tuned_text: torch.Tensor | str, place: int) -> torch.Tensor:
    """The same for one prompt, written out, by point; `place`: whose noise it starts from."""
    prior_unet = tiny_components().unet  # the same weights, never trained
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0).float()
    encoder, tokenizer = parts.text_encoders[0].model, parts.text_encoders[0].tokenizer

    def text(words: str) -> torch.Tensor:
        return encoder(tokenizer(words, padding="max_length", return_tensors="pt").input_ids).last_hidden_state

    tuned_hidden = text(tuned_text) if isinstance(tuned_text, str) else tuned_text
    x, found = initial_noise(SEED, place, (4, 8, 8))[None], []
    times = [901 - 100 * i for i in range(STEPS)]
    for i, t in enumerate(times):
        plain, empty = prior_unet(x, t, text(prior_text)).sample, prior_unet(x, t, text("")).sample
        if i % 2 == 0:
            found.append((parts.unet(x, t, tuned_hidden).sample - plain).square().mean())
        epsilon = empty + GUIDANCE * (plain - empty)
        clean = (x - (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_bar[t].sqrt()
        then = alpha_bar[times[i + 1] if i + 1 < len(times) else 0]
        x = then.sqrt() * clean + (1 - then).sqrt() * epsilon
    return torch.stack(found)


def test_drift_is_the_difference_along_the_priors_own_way() -> None:
    parts = tiny_components()
    add_adapter(parts.unet, AdapterConfig(rank=4, alpha=4), seed=0)
    parts.unet.eval()
    moved_adapter(parts)
    watch, identifier = watched(parts)
    with torch.no_grad():
        for rows in identifier.rows:
            rows.mul_(-1)
    learned = Conditioner(parts.text_encoders, identifier, class_word="toy", name="toy_subject")
    own = []
    for place, caption in enumerate(CAPTIONS):
        tuned = learned.encode([caption], tuned=True).hidden
        own.append(reference(parts, caption.replace("{subject}", "toy"), tuned, place))
    other = [reference(parts, prompt, prompt, place) for place, prompt in enumerate(UNRELATED)]
    expected = drift_of(torch.stack(own).mean(dim=0), torch.stack(other).mean(dim=0))
    measured = watch.measure()
    assert measured.subject == pytest.approx(expected.subject, rel=1e-3)
    assert measured.unrelated == pytest.approx(expected.unrelated, rel=1e-3)
    assert measured.ratio == pytest.approx(expected.ratio, rel=1e-3)


def test_batches_make_no_difference_and_the_modes_stay() -> None:
    parts = tiny_components()
    add_adapter(parts.unet, AdapterConfig(rank=4, alpha=4, dropout=0.5), seed=0)
    moved_adapter(parts)
    parts.unet.train().get_submodule("mid_block").eval()
    trains = {name: parameter.requires_grad for name, parameter in parts.unet.named_parameters()}
    modes = [module.training for module in parts.unet.modules()]
    one, four = (watched(parts, batch_size=rows)[0].measure() for rows in (1, 4))
    assert one.subject == pytest.approx(four.subject, rel=1e-4) and one.unrelated == pytest.approx(
        four.unrelated, rel=1e-4
    )
    assert modes == [module.training for module in parts.unet.modules()] and True in modes and False in modes
    assert trains == {name: parameter.requires_grad for name, parameter in parts.unet.named_parameters()}


# -- in a run


def measures(event: Event) -> bool:
    return isinstance(event, BusyEvent) and event.what == "drift"


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
    assert unrelated_prompts(("a Toy here", "toys", "a toybox", "snow"), "toy") == ["a toybox", "snow"]
    assert unrelated_prompts(("a teddy bear", "two Teddy  bears", "a bear"), " teddy  bear") == ["a bear"]
    assert unrelated_prompts(OutputConfig().drift_prompts, "toy") == list(OutputConfig().drift_prompts)
    for prompt in ("a {subject}", "embedding:toy_subject"):
        with pytest.raises(InputError, match="leave the subject out"):
            OutputConfig(drift_prompts=(prompt,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "toy"), ({"init_word": "dog"}, "dog"), ({"identifier_mode": "word"}, "toy_subject toy")],
)
def test_the_subjects_half_is_its_captions_from_what_it_started_as(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    made: list[DriftWatch] = []
    monkeypatch.setattr(
        "apt_train.training.inputs.DriftWatch", lambda *a, **k: made.append(DriftWatch(*a, **k)) or made[0]
    )
    captioned = pictures(captions="my {subject}\na red {subject}\nmy {subject}")
    run(steps=1, snapshot_every=1, images=captioned, drift_prompts=("a dog", "snow", "a city"), **settings)
    tuned = ["my {subject}", "a red {subject}", "my {subject}"]
    prior = [f"my {words}", f"a red {words}", f"my {words}"]
    other = ["a dog", "snow", "a city"]
    assert made[0].texts == [*tuned, *other, *prior, *other, ""]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.5, "gradient_checkpointing": True},
        {"method": "tlora"},
        {"method": "dco", "identifier_mode": "word"},
    ],
    ids=["apt", "dropout", "t-lora", "word"],
)
def test_no_weight_and_no_log_but_its_own_is_changed(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = run(snapshot_every=1, watch_drift=False, output_dir=tmp_path / "plain", **settings)
    watched = run(snapshot_every=1, output_dir=tmp_path / "watched", **settings)
    assert same_weights(plain, watched)
    lines = [json.loads(line) for line in (tmp_path / "watched" / "log.jsonl").read_text().splitlines()]
    assert all(line.pop("drift")["subject"] > 0 for line in lines)
    assert lines == [json.loads(line) for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_measures_what_an_unbroken_one_does(tmp_path: Path) -> None:
    run(steps=2, snapshot_every=1, output_dir=tmp_path / "parts")
    run(steps=4, snapshot_every=1, output_dir=tmp_path / "parts", resume=True)
    run(steps=4, snapshot_every=1, output_dir=tmp_path / "whole")
    assert (tmp_path / "parts" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("MPS backend out of memory"), "MPS backend out of memory"),
        (MemoryError(), "MemoryError"),
        (Drift(float("nan"), 0.1, 0.1), "the result is not a number"),
    ],
)
def test_where_it_cannot_be_measured_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, failure: Any, reason: str
) -> None:
    def fail(_: Any) -> Drift:
        if isinstance(failure, Drift):
            return failure
        raise failure

    monkeypatch.setattr(DriftWatch, "measure", fail)
    recorder = Recorder()
    assert run(steps=3, snapshot_every=1, on_event=recorder).steps_done == 3
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent) and "drift" in event.text]
    assert len(told) == 1 and f"({reason})" in told[0]
    assert [event.drift for event in recorder.steps] == [None] * 3


@pytest.mark.parametrize("error", [StopTraining(), KeyboardInterrupt(), RuntimeError("cancelled by the host")])
def test_a_run_broken_off_while_measuring_has_logged_its_step(tmp_path: Path, error: BaseException) -> None:
    """Also by an error of a kind that the measuring itself may fail with: it is the caller's, and passes."""
    settings = {"steps": 4, "snapshot_every": 2, "output_dir": tmp_path / "parts"}
    heard: list[Event] = []

    def interrupt(event: Event) -> None:
        heard.append(event)
        if sum(measures(event) for event in heard) == 3:
            raise error

    with contextlib.nullcontext() if isinstance(error, StopTraining) else pytest.raises(type(error)):
        assert run(on_event=interrupt, **settings).stopped
    chain: list[BaseException | None] = [error]
    while (last_raised := chain[-1]) is not None:
        chain.append(last_raised.__cause__ or last_raised.__context__)
        assert error not in chain[1:], "whoever follows the chain comes to its end"
    assert not any(isinstance(event, NoticeEvent) for event in heard[-3:]), "it is told as no failure"
    (_, last) = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert last["step"] == 2 and "drift" not in last
    resumed = run(resume=True, **settings)
    assert resumed.steps_done == 4 and same_weights(resumed, run(steps=4))


def test_a_caller_is_asked_before_every_call_of_the_unet() -> None:
    """Trajectories of the prior and its prediction once, the tuned model's every time; two batches of prompts."""
    recorder = Recorder()
    run(steps=2, snapshot_every=1, batch_size=2, drift_prompts=("a dog", "snow"), on_event=recorder)
    told = [event for event in recorder.events if measures(event) or not isinstance(event, BusyEvent)]
    order = ["drift" if isinstance(event, BusyEvent) else type(event).__name__ for event in told]
    points = STEPS // EVERY
    first, second = 2 * (STEPS + 2 * points), 2 * points
    assert order == ["PlanEvent"] + ["drift"] * first + ["StepEvent"] + ["drift"] * second + ["StepEvent"]
    progress = [(event.done, event.total) for event in told if isinstance(event, BusyEvent)]
    assert progress == [*((n, first) for n in range(first)), *((n, second) for n in range(second))]


def test_ctrl_c_is_heard_while_the_drift_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """By the terminal's own callback, between two UNet calls and not after them; these draw nothing themselves."""
    busy: list[Event] = []
    with Progress() as progress, stop_on_interrupt(progress):

        def hear(event: Event) -> None:
            if measures(event):
                busy.append(event)
                if len(busy) == 3:
                    signal.raise_signal(signal.SIGINT)
            progress(event)

        result = run(steps=4, snapshot_every=2, on_event=hear)
    assert result.stopped and result.steps_done == 2 and len(busy) == 3
    assert "Ctrl-C again" in (told := capsys.readouterr().err) and "1/4" in told and "2/4" not in told


def test_other_prompts_drop_what_was_measured_on_the_first(tmp_path: Path) -> None:
    run(steps=2, snapshot_every=1, output_dir=tmp_path)
    recorder = Recorder()
    more = {"steps": 4, "snapshot_every": 1, "output_dir": tmp_path, "resume": True, "on_event": recorder}
    run(**more, drift_prompts=("a dog",))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["drift" in line for line in lines] == [False, False, True, True]
    assert [event.text for event in recorder.events if isinstance(event, NoticeEvent) and "dropped" in event.text]
    run(**{**more, "steps": 5}, drift_prompts=("a dog", "my toy"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = ["drift" in line for line in lines]
    assert found == [False, False, True, True, True], "a prompt that names the class counts for nothing"


def test_what_is_measured_on_other_prompts_is_dropped_whatever_comes_between(tmp_path: Path) -> None:
    def cancel(event: Event) -> None:
        if isinstance(event, NoticeEvent) and "dropped" in event.text:
            raise KeyboardInterrupt

    run(steps=2, snapshot_every=1, output_dir=tmp_path)
    more = {"steps": 3, "snapshot_every": 1, "output_dir": tmp_path, "resume": True, "drift_prompts": ("a dog",)}
    with pytest.raises(KeyboardInterrupt):
        run(**more, on_event=cancel)
    run(**more)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["drift" in line for line in lines] == [False, False, True]

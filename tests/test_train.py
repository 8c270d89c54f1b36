"""The loop: DreamBooth as its own reference, exact resume, stopping, failing, and what every setting does."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, Layers, LrSchedule, TrainConfig
from apt_train.data.dataset import ImageSet
from apt_train.errors import InputError
from apt_train.events import BusyEvent, NoticeEvent, PreviewEvent, StepEvent, StopTraining, TrainResult
from apt_train.families.network import AttentionLayer
from apt_train.families.sd.network import StableDiffusion
from apt_train.rng import generator
from apt_train.run.export import lora_to_kohya
from apt_train.settings_field import all_said
from apt_train.training import finish, loop, step_values, update
from apt_train.training.objective import objective_of
from tests.tiny import tiny_components, tiny_unet_without_decoder_attention, unet_of
from tests.training import Recorder, pictures, quick_config, run, same_weights


def test_a_picture_that_is_there_twice_is_told() -> None:
    """The examples' spare loaders all name the host's own picture."""
    different, recorder = pictures(2), Recorder()
    twice = ImageSet.from_tensors([picture.pixels.permute(1, 2, 0) / 255 for picture in [*different.images] * 2])
    run(images=twice, steps=1, on_event=recorder)
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent) and "same picture" in event.text]
    assert len(told) == 2 and told[0].startswith("picture 1 and picture 3 are the same picture, which counts 2 times")
    assert different.repeats() == []


# -- DreamBooth is DreamBooth


def dreambooth_reference(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Plain DreamBooth-LoRA in word mode, written out: what APT with everything off must equal bit for bit."""
    parts, images = tiny_components(), pictures()
    unet, betas = unet_of(parts), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0).float()
    posteriors = [parts.encode(picture.pixels[None].float() / 127.5 - 1) for picture in images.images]
    encoder, tokenizer = parts.text_encoders[0].model, parts.text_encoders[0].tokenizer
    ids = tokenizer("a photo of toy_subject toy", padding="max_length", return_tensors="pt").input_ids
    hidden = encoder(ids).last_hidden_state
    add_adapter(unet, AdapterConfig(rank=config.adapter.rank, alpha=config.adapter.resolved_alpha), seed=config.seed)
    unet.train()
    parameters, settings = list(Adapter(unet).parameters.values()), config.optimizer
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4, fused=True
    )
    for step in range(config.steps):
        torch.randint(len(posteriors), (1,), generator=generator(config.seed, "subject", step, "bucket"))
        latents, noises, times = [], [], []
        for index in range(settings.batch_size):
            draws = generator(config.seed, "subject", step, index)
            times.append(int(torch.randint(1000, (1,), generator=draws)))
            _, pick, _ = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
            mean, std = posteriors[int(pick * len(posteriors))]
            assert std is not None
            posterior, noise = torch.randn(2, *mean.shape[1:], generator=draws)
            latents.append(mean[0] + std[0] * posterior)
            noises.append(noise)
        x, noise, t = torch.stack(latents), torch.stack(noises), torch.tensor(times)
        signal, sigma = alpha_bar[t].sqrt().view(-1, 1, 1, 1), (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        prediction = unet(signal * x + sigma * noise, t, hidden.expand(len(times), -1, -1)).sample
        F.mse_loss(prediction, noise, reduction="none").mean(dim=(1, 2, 3)).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    state = {name: parameter.detach() for name, parameter in Adapter(unet).parameters.items()}
    return lora_to_kohya(state, config.adapter.resolved_alpha, parts.family, unet.config)


APT_OFF: dict[str, Any] = {
    "method": "apt",
    "adaptive_augmentation": False,
    "adaptive_loss_weight": False,
    "dist_weight": 0.0,
    "attn_weight": 0.0,
}


@pytest.mark.parametrize(
    "settings",
    [{"method": "dreambooth"}, {"method": "dreambooth", "watch_indicator": True}, APT_OFF],
    ids=["dreambooth", "watched", "apt-off"],
)
def test_dreambooth_equals_the_plain_loop_bit_for_bit(settings: dict[str, Any]) -> None:
    settings = {"identifier_mode": "word", "steps": 5, "seed": 3, **settings}
    reference = dreambooth_reference(quick_config(**settings))
    lora = run(**settings).lora
    assert lora.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(lora[name], tensor), name
    assert any(tensor.abs().max() > 0 for name, tensor in lora.items() if "lora_up" in name), "nothing was trained"


def test_the_unet_is_the_base_again_after_training() -> None:
    parts = tiny_components()
    before = {name: tensor.clone() for name, tensor in parts.unet.state_dict().items()}
    run(parts)
    after = parts.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in parts.unet.parameters())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", ["apt", "dreambooth", "dco", "tlora"])
def test_every_method_trains_every_family(kind: str, method: str) -> None:
    result = run(tiny_components(kind), method=method, steps=2)
    moved = [name for name, tensor in result.lora.items() if name.endswith("lora_up.weight") and tensor.abs().max() > 0]
    assert len(moved) == sum(name.endswith("lora_up.weight") for name in result.lora)
    assert result.embeddings is not None and set(result.embeddings) == (
        {"clip_l", "clip_g"} if kind == "sdxl" else {"clip_l"}
    )
    assert result.gamma is not None and result.gamma.shape == (2, 10) and len(result.losses) == 2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert same_weights(run(), run())
    assert not same_weights(run(), run(seed=1))


def test_a_batch_of_four_draws_what_four_accumulated_batches_draw() -> None:
    whole, parts = Recorder(), Recorder()
    run(batch_size=4, accumulation=1, method="dreambooth", on_event=whole)
    run(batch_size=1, accumulation=4, method="dreambooth", on_event=parts)
    assert [event.timestep for event in whole.steps] == [event.timestep for event in parts.steps]
    for one, other in zip(whole.steps, parts.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


# -- resume

RESUMED: dict[str, dict[str, Any]] = {
    "apt": {"dropout": 0.1, "augment_variants": 8},
    "accumulated": {"accumulation": 2, "batch_size": 1, "lazy_prior": 2},
    "word-dco": {"method": "dco", "identifier_mode": "word"},
    "cosine-tlora": {"method": "tlora", "lr_schedule": "cosine", "warmup_steps": 2},
}


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name: str, kind: str, tmp_path: Path) -> None:
    settings = {"steps": 5, "snapshot_every": 2, **RESUMED[name]}
    whole = run(tiny_components(kind), output_dir=tmp_path / "whole", **settings)

    def stop(event: Any) -> None:
        if getattr(event, "step", 0) == 3:
            raise StopTraining

    first = run(tiny_components(kind), output_dir=tmp_path / "parts", on_event=stop, **settings)
    assert first.stopped and first.steps_done == 3
    second = run(tiny_components(kind), output_dir=tmp_path / "parts", resume=True, **settings)
    assert second.steps_done == 5 and not second.stopped
    assert same_weights(whole, second)
    assert second.gamma is not None and whole.gamma is not None
    assert second.losses == whole.losses and second.gamma.tolist() == whole.gamma.tolist()
    logs = [(tmp_path / run_name / "log.jsonl").read_text() for run_name in ("whole", "parts")]
    assert logs[0] == logs[1]
    states = [
        (tmp_path / run_name / "snapshots" / "step_000005" / "state.safetensors").read_bytes()
        for run_name in ("whole", "parts")
    ]
    assert states[0] == states[1]
    files = [(tmp_path / run_name / "toy_subject.safetensors").read_bytes() for run_name in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("no_report")
def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    run(steps=3, output_dir=tmp_path / "run")
    longer = run(steps=5, output_dir=tmp_path / "run", resume=True)
    assert longer.steps_done == 5 and same_weights(longer, run(steps=5))


def test_more_steps_are_refused_where_the_schedule_reads_the_total(tmp_path: Path) -> None:
    run(steps=2, lr_schedule="cosine", output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="steps was 2 in .*in place of 3"):
        run(steps=3, lr_schedule="cosine", output_dir=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("no_report")
def test_steps_after_the_last_snapshot_are_cut_from_the_log_after_a_crash(tmp_path: Path) -> None:
    whole = run(steps=6, snapshot_every=2, output_dir=tmp_path / "whole")
    run(steps=6, snapshot_every=2, output_dir=tmp_path / "crashed")
    for folder in ("step_000006", "step_000004"):  # as if the power had gone at step 3, with a torn last line
        for file in (tmp_path / "crashed" / "snapshots" / folder).glob("state.*"):
            file.unlink()
    _restore_state(tmp_path, step=2)
    with open(tmp_path / "crashed" / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    resumed = run(steps=6, snapshot_every=2, output_dir=tmp_path / "crashed", resume=True)
    assert same_weights(whole, resumed)
    assert (tmp_path / "crashed" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


def _restore_state(tmp_path: Path, step: int) -> None:
    """Give `crashed` the state of `step`, taken from a run that ended there."""
    run(steps=step, snapshot_every=2, output_dir=tmp_path / "short")
    for file in (tmp_path / "short" / "snapshots" / f"step_{step:06d}").glob("state.*"):
        file.rename(tmp_path / "crashed" / "snapshots" / f"step_{step:06d}" / file.name)


@pytest.mark.usefixtures("no_report")
def test_a_damaged_state_makes_way_for_the_one_before(tmp_path: Path) -> None:
    whole = run(steps=6, snapshot_every=2, output_dir=tmp_path / "run")
    state = tmp_path / "run" / "snapshots" / "step_000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    recorder = Recorder()
    resumed = run(steps=6, snapshot_every=2, output_dir=tmp_path / "run", resume=True, on_event=recorder)
    assert [event.step for event in recorder.steps] == [5, 6]
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"images": pictures(seed=9)}, "pictures"),
        ({"components": tiny_components(seed=9)}, "checkpoint"),
    ],
)
def test_resume_refuses_another_run_and_names_what_differs(changed: dict[str, Any], word: str, tmp_path: Path) -> None:
    run(steps=1, output_dir=tmp_path / "run")
    with pytest.raises(InputError, match=word):
        run(**{"steps": 2, "output_dir": tmp_path / "run", "resume": True, **changed})


def test_a_new_run_refuses_a_folder_that_holds_one_and_leaves_it_alone(tmp_path: Path) -> None:
    run(steps=1, output_dir=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds a run: .*, or resume it where it was started"):
        run(steps=1, seed=5, output_dir=tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_report")
def test_only_the_newest_two_snapshots_keep_their_state_and_all_keep_their_lora(tmp_path: Path) -> None:
    run(steps=5, snapshot_every=1, output_dir=tmp_path)
    folders = sorted((tmp_path / "snapshots").iterdir())
    assert [folder.name for folder in folders] == [f"step_{n:06d}" for n in range(1, 6)]
    assert [(folder / "state.json").exists() for folder in folders] == [False] * 3 + [True] * 2
    for folder in folders:
        assert (folder / "toy_subject.safetensors").exists() and (folder / "toy_subject_embedding.safetensors").exists()


def test_the_snapshot_of_the_last_step_is_the_exported_lora(tmp_path: Path) -> None:
    result = run(steps=3, output_dir=tmp_path)
    for path in (
        tmp_path / "toy_subject.safetensors",
        tmp_path / "snapshots" / "step_000003" / "toy_subject.safetensors",
    ):
        saved = load_file(path)
        assert saved.keys() == result.lora.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in result.lora.items())


# -- stopping and failing


class Cancelled(BaseException):
    """As hosts raise it: no Exception."""


def test_a_cancelled_run_saves_the_last_completed_step_and_goes_on_from_it(tmp_path: Path) -> None:
    def cancel(event: Any) -> None:
        if getattr(event, "step", 0) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(output_dir=tmp_path / "run", on_event=cancel)
    assert (tmp_path / "run" / "toy_subject.safetensors").exists()
    assert same_weights(run(output_dir=tmp_path / "run", resume=True), run())


@pytest.mark.parametrize("error", [StopTraining(), RuntimeError("cancelled by the host")])
def test_a_run_broken_off_while_previews_are_drawn_keeps_its_steps(tmp_path: Path, error: Exception) -> None:
    settings = {"preview_every": 2, "output_dir": tmp_path / "run"}

    def cancel(event: Any) -> None:
        if isinstance(event, BusyEvent) and event.what == "previews":
            raise error

    with contextlib.nullcontext() if isinstance(error, StopTraining) else pytest.raises(RuntimeError, match="host"):
        assert run(on_event=cancel, **settings).steps_done == 2
    assert not (tmp_path / "run" / "previews").exists()
    assert same_weights(run(resume=True, **settings), run())


def test_a_failure_inside_a_step_saves_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = update._clip

    def fail(run_: Any) -> Any:
        if run_.steps_done == 2:
            raise RuntimeError("a bug")
        return original(run_)

    monkeypatch.setattr(update, "_clip", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(output_dir=tmp_path / "run")
    monkeypatch.setattr(update, "_clip", original)
    recorder = Recorder()
    resumed = run(output_dir=tmp_path / "run", resume=True, on_event=recorder)
    assert [event.step for event in recorder.steps] == [3, 4]
    assert same_weights(resumed, run())


@pytest.mark.parametrize(
    ("name", "value"), [("Weight norm", 1.0), ("denoising", 1.0), ("loss", 1.0), ("size", torch.ones(())), ("on", True)]
)
def test_a_number_that_the_log_would_not_give_back_is_told_at_once(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every line with it would count as damaged, or its curve be missing."""
    monkeypatch.setattr(loop, "optimizer_step", lambda run: {**update.optimizer_step(run), "numbers": {name: value}})
    with pytest.raises(AssertionError, match=name):
        run(output_dir=tmp_path, steps=2)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = update._backward

    def poisoned(run_: Any, loss: torch.Tensor) -> None:
        original(run_, loss * float("nan") if run_.steps_done == 3 else loss)

    monkeypatch.setattr(update, "_backward", poisoned)
    with pytest.raises(update.TrainingDiverged, match="step 4"):
        run(output_dir=tmp_path, snapshot_every=2)
    assert sorted(folder.name for folder in (tmp_path / "snapshots").iterdir()) == ["step_000002"]
    assert not (tmp_path / "toy_subject.safetensors").exists()
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_file(tmp_path / "snapshots/step_000002/toy_subject.safetensors").values()
    )


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(update, "_backward", full)
    with pytest.raises(InputError, match="lower resolution"):
        run()


def test_nothing_is_written_without_an_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run().run_dir is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_what_the_readme_says(tmp_path: Path) -> None:
    run(steps=3, snapshot_every=2, preview_every=2, output_dir=tmp_path, record={"inputs": {"checkpoint": "x"}})
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "toy_subject.safetensors",
        "toy_subject_embedding.safetensors",
        "log.jsonl",
        "config.json",
        "indicator.png",
        "snapshots",
        "previews",
        "attention.safetensors",
    } <= names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["inputs"] == {"checkpoint": "x"} and TrainConfig.from_dict(config["config"]) == quick_config(
        steps=3, snapshot_every=2, preview_every=2
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert list(lines[0])[:10] == [
        "step",
        "loss",
        "denoising",
        "stabilization",
        "alignment",
        "grad_norm",
        "lr",
        "timestep",
        "level",
        "gamma",
    ]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["con", "nul"])
def test_a_name_that_some_system_cannot_store_is_refused_before_training(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="reserved name on Windows"):
        run(identifier=name, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_file_browser_leaves_does_not_make_a_folder_full(tmp_path: Path) -> None:
    for name in (".DS_Store", "desktop.ini", ".0123.tmp"):
        (tmp_path / name).touch()
    run(output_dir=tmp_path)
    assert (tmp_path / "toy_subject.safetensors").exists()


# -- previews and notices


def test_previews_come_with_the_same_seed_and_the_prior_stays() -> None:
    recorder = Recorder()
    run(steps=4, preview_every=2, preview_prompts=("a {subject} on grass", "a dog"), on_event=recorder)
    first, second = [event for event in recorder.events if isinstance(event, PreviewEvent)]
    assert (first.step, second.step) == (2, 4) and first.prompts == ["a {subject} on grass", "a dog"]
    assert all(one is other for one, other in zip(first.prior, second.prior, strict=True)), "drawn once"
    assert first.tuned[0].tobytes() != second.tuned[0].tobytes() != first.prior[0].tobytes()
    assert first.tuned[0].size == (64, 64)


@pytest.mark.usefixtures("no_report")
def test_previews_and_snapshots_do_not_change_the_weights(tmp_path: Path) -> None:
    assert same_weights(run(), run(preview_every=1, snapshot_every=1, balance_every=1, output_dir=tmp_path))


def test_the_user_hears_that_the_word_is_the_class() -> None:
    recorder = Recorder()
    run(steps=1, identifier_mode="word", identifier="toy", on_event=recorder)
    assert any(isinstance(event, NoticeEvent) and "toy" in event.text for event in recorder.events)


@pytest.mark.parametrize(
    "settings",
    [{"preview_every": 2, "preview_prompts": ("toy_subject toy on grass",)}, {"snapshot_every": 2}],
    ids=["previews", "drift"],
)
def test_in_word_mode_nothing_needs_the_text_encoder_any_more(settings: dict[str, Any]) -> None:
    """It has left the device by then: a prompt that says the subject's name is encoded beforehand too."""
    parts = tiny_components()

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded while training")

    def watch(event: Any) -> None:
        if getattr(event, "step", 0) == 1:
            parts.text_encoders[0].model.register_forward_pre_hook(refuse)

    assert run(parts, steps=2, on_event=watch, identifier_mode="word", **settings).steps_done == 2


def test_a_disk_that_fills_up_during_a_preview_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; what the training itself writes is refused by itself."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    result = run(steps=2, preview_every=1, output_dir=tmp_path)
    (told,) = [text for text in result.notices if "previews failed" in text]
    assert "disk is full" in told and "): training goes on" in told and ".)" not in told
    assert result.steps_done == 2 and (tmp_path / "toy_subject.safetensors").exists()


def test_what_a_caller_does_to_an_event_changes_no_weight() -> None:
    def spoil(event: Any) -> None:
        if isinstance(event, StepEvent):
            event.gamma[:] = [1.0 - value for value in event.gamma]
            event.timestep.clear()
            event.terms.clear()
        if isinstance(event, PreviewEvent):
            assert len(event.prior) == len(event.tuned) == 1
            event.prior.clear()

    spoiled = run(on_event=spoil, watch_drift=False, preview_every=2, preview_steps=1)
    assert same_weights(spoiled, run(watch_drift=False)) and not spoiled.notices


def test_a_preview_that_fails_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling may need more memory than training: it is told once, and not tried again."""

    def too_large(*_: Any, **__: Any) -> None:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")

    monkeypatch.setattr("apt_train.training.previewing.previews", too_large)
    recorder = Recorder()
    result = run(steps=3, preview_every=1, on_event=recorder)
    assert result.steps_done == 3
    notices = [event.text for event in recorder.events if isinstance(event, NoticeEvent)]
    told = [text for text in notices if "previews failed" in text]
    assert len(told) == 1 and "out of memory" in told[0]
    assert same_weights(result, run(steps=3))


def test_an_error_that_the_caller_raises_at_a_previews_notice_is_no_failure_of_the_preview() -> None:
    parts = tiny_components()
    broken = dataclasses.replace(parts, decode=lambda latents: parts.decode(latents) * float("nan"))

    def cancel(event: Any) -> None:
        if isinstance(event, NoticeEvent) and "is not a number" in event.text:
            raise RuntimeError("cancelled by the host")

    with pytest.raises(RuntimeError, match="cancelled by the host"):
        run(broken, steps=1, preview_every=1, watch_drift=False, on_event=cancel)


# -- prior preservation


def test_prior_preservation_adds_its_loss_and_never_enters_the_indicator() -> None:
    plain, kept = Recorder(), Recorder()
    first = run(steps=1, on_event=plain)
    second = run(steps=1, on_event=kept, prior_images=pictures(2, seed=5))
    added = kept.steps[0].prior_preservation
    assert plain.steps[0].prior_preservation is None and added is not None and added > 0
    assert kept.steps[0].loss == pytest.approx(plain.steps[0].loss + added)
    assert kept.steps[0].gamma == plain.steps[0].gamma
    assert not same_weights(first, second)


def test_masks_change_the_loss_and_not_the_indicator() -> None:
    mask = torch.zeros(3, 64, 64)
    mask[:, :32] = 1
    plain, masked = Recorder(), Recorder()
    run(steps=1, on_event=plain)
    run(steps=1, on_event=masked, images=pictures(masks=mask))
    assert plain.steps[0].denoising != masked.steps[0].denoising
    assert plain.steps[0].gamma == masked.steps[0].gamma


# -- every setting does something

CHANGES: dict[str, Any] = {
    "class_word": "dog",
    "identifier_mode": "word",
    "init_word": "dog",
    "method": "dreambooth",
    "steps": 3,
    "seed": 1,
    "precision": "bf16",
    "base_storage": "fp8",
    "rank": 3,
    "alpha": 8.0,
    "dropout": 0.5,
    "targets": "attention+ff",
    "kind": "rslora",
    "adaptive_augmentation": False,
    "adaptive_loss_weight": False,
    "bins": 3,
    "ema": 1.0,
    "temperature": "auto",
    "p_max": 0.0,
    "max_zoom": 3.0,
    "max_degrees": 90.0,
    "augment_kinds": ("affine", "color"),
    "augment_variants": 1,
    "augment_fill": "reflect",
    "mask_fill": True,
    "stabilization": False,
    "dist_weight": 50.0,
    "dist_layers": "all",
    "dist_mode": "raw",
    "alignment": False,
    "attn_weight": 500.0,
    "attn_layers": "all",
    "attn_schedule": "linear",
    "lazy_prior": 2,
    "learning_rate": 1e-3,
    "embedding_learning_rate": 1e-1,
    "beta1": 0.5,
    "beta2": 0.5,
    "epsilon": 1e-3,
    "weight_decay": 1.0,
    "max_grad_norm": 0.001,
    "lr_schedule": "cosine",
    "batch_size": 1,
    "accumulation": 2,
    "optimizer": "radam",
    "resolution": 32,
    "caption_template": "my {subject}",
}
NEEDS: dict[str, dict[str, Any]] = {
    "mask_fill": {"adaptive_loss_weight": False},
    "epsilon": {"max_grad_norm": 0.01},
    "max_grad_norm": {"epsilon": 1e-3},
    "beta2": {"epsilon": 1e-3},
}


ALL_ACT: dict[str, Any] = {  # in four steps: gamma rises at once, so that variants are drawn and every term counts
    "steps": 4,
    "dist_weight": 10.0,
    "attn_weight": 100.0,
    "temperature": 10000.0,
}


@dataclasses.dataclass
class Seen:
    """A run, and what an effect is looked for in."""

    result: TrainResult
    steps: list[StepEvent]

    def lines(self) -> list[dict[str, Any]]:
        return [step.log_line() for step in self.steps]

    def weighs(self, term: str, more: float, before: Seen) -> bool:
        """In the second step, up to which runs that differ in a regulariser's weight are the same: it was 0."""
        (first, now), (same, then) = self.steps[:2], before.steps[:2]
        raw = now.terms[term] or 0.0
        assert raw > 0 and first.loss == pytest.approx(same.loss) and raw == pytest.approx(then.terms[term], rel=1e-3)
        return now.loss - then.loss == pytest.approx(more * raw, rel=1e-2)

    def last(self, name: str) -> Any:
        """A term, raw, in the last step."""
        return self.steps[-1].terms.get(name)

    def of(self, part: str) -> list[Tensor]:
        return [tensor for name, tensor in self.result.lora.items() if name.endswith(part)]

    def size(self, part: str) -> float:
        return sum(float(tensor.square().sum()) for tensor in self.of(part)) ** 0.5

    def words_moved(self) -> float:
        """How far the learned rows are from the init word's."""
        table = tiny_components().text_encoders[0].table
        row = (self.result.embeddings or {})["clip_l"]
        return float((table - row).norm(dim=1).min())

    def plain_sum(self) -> float:
        """Of the last step's weighted terms, the denoising loss as it is."""
        weights = {"denoising": 1.0, "stabilization": ALL_ACT["dist_weight"], "alignment": ALL_ACT["attn_weight"]}
        return sum(weight * (self.last(name) or 0.0) for name, weight in weights.items())


def seen(**settings: Any) -> Seen:
    recorder = Recorder()
    return Seen(run(**{**ALL_ACT, **settings}, on_event=recorder), recorder.steps)


# What the help promises, looked for in the run with the changed setting and in the one without.
EFFECTS: dict[str, Callable[[Seen, Seen], bool]] = {
    "identifier_mode": lambda now, before: now.result.embeddings is None and before.result.embeddings is not None,
    "method": lambda now, before: set(now.steps[0].terms) == {"denoising"} and max(now.steps[-1].gamma) == 0,
    "steps": lambda now, before: len(now.steps) == 3 and now.lines() == before.lines()[:3],
    "seed": lambda now, before: [s.timestep for s in now.steps] != [s.timestep for s in before.steps],
    "rank": lambda now, before: {len(down) for down in now.of("lora_down.weight")} == {3},
    "alpha": lambda now, before: {float(alpha) for alpha in now.of(".alpha")} == {8.0},
    "targets": lambda now, before: any("_ff_net_" in name for name in now.result.lora.keys() - before.result.lora),
    "kind": lambda now, before: float(now.of(".alpha")[0]) == float(before.of(".alpha")[0]) * 4**0.5,  # of rank 4
    "adaptive_loss_weight": lambda now, before: (
        now.steps[-1].loss == pytest.approx(now.plain_sum()) and before.steps[-1].loss < 0.99 * before.plain_sum()
    ),
    "bins": lambda now, before: len(now.steps[-1].gamma) == 3,
    "temperature": lambda now, before: sum(now.steps[-1].gamma) < sum(before.steps[-1].gamma),
    "stabilization": lambda now, before: "stabilization" not in now.steps[-1].terms,
    "dist_weight": lambda now, before: now.weighs("stabilization", 50.0 - ALL_ACT["dist_weight"], before),
    "alignment": lambda now, before: "alignment" not in now.steps[-1].terms,
    "attn_weight": lambda now, before: now.weighs("alignment", 500.0 - ALL_ACT["attn_weight"], before),
    "lazy_prior": lambda now, before: [s.stabilization is None for s in now.steps] == [False, True, False, True],
    "learning_rate": lambda now, before: now.steps[0].lr == 1e-3 and now.size("up.weight") < before.size("up.weight"),
    "embedding_learning_rate": lambda now, before: now.words_moved() > before.words_moved(),
    "epsilon": lambda now, before: now.size("up.weight") < before.size("up.weight"),
    "weight_decay": lambda now, before: now.size("down.weight") < before.size("down.weight"),
    "max_grad_norm": lambda now, before: now.size("up.weight") < before.size("up.weight"),
    "lr_schedule": lambda now, before: [s.lr for s in now.steps] == sorted((s.lr for s in now.steps), reverse=True),
    "batch_size": lambda now, before: {len(s.timestep) for s in now.steps} == {1},
    "accumulation": lambda now, before: {len(s.timestep) for s in now.steps} == {4},
}


@pytest.fixture(scope="module")
def baseline() -> Any:
    """The run that each setting is compared with; kept by what the comparison needs."""
    kept: dict[str, Any] = {}

    def of(**needs: Any) -> Any:
        key = json.dumps(needs)
        kept[key] = kept.get(key) or seen(**needs)
        return kept[key]

    return of


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_trained_weights(name: str, baseline: Any) -> None:
    """In the direction that its help promises, where a few steps can show one."""
    needs = NEEDS.get(name, {})
    now, before = seen(**needs, **{name: CHANGES[name]}), baseline(**needs)
    assert not same_weights(now.result, before.result)
    assert EFFECTS.get(name, lambda *_: True)(now, before)


OFF: dict[str, dict[str, Any]] = {
    "watch_indicator": {"method": "dreambooth"},
    "adaptive_augmentation": {"adaptive_augmentation": False},
    "augment_kinds=affine": {"augment_kinds": ("color",)},
    "stabilization": {"stabilization": False},
    "alignment": {"alignment": False},
    "identifier_mode=learned": {"identifier_mode": "word"},
}


@pytest.mark.parametrize("needed", OFF)
def test_a_setting_has_no_effect_without_the_one_it_needs(needed: str, baseline: Any) -> None:
    idle = {name: CHANGES[name] for name, about in all_said(TrainConfig).items() if about.needs == needed}
    assert idle and same_weights(seen(**OFF[needed], **idle).result, baseline(**OFF[needed]).result)


def test_a_setting_needs_another_or_an_input() -> None:
    about = all_said(TrainConfig)
    needed = {item.needs.partition("=")[0] for item in about.values() if item.needs}
    assert needed - {"prior_images"} <= set(about)
    assert {item.needs for item in about.values() if item.needs and item.moves_weights} == {*OFF, "prior_images"}


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_says_whether_it_runs_the_prior(name: str, others: bool) -> None:
    """`runs_prior`, by which report and terminal know whether gamma is measured, against what a step does."""
    switches = dict.fromkeys(("adaptive_augmentation", "adaptive_loss_weight", "stabilization", "alignment"), others)
    config = quick_config(**{**switches, name: CHANGES[name]})
    assert config.measures_indicator == objective_of(config).needs_prior(0)


def test_pictures_that_are_never_drawn_augmented_are_as_without_the_augmentation(baseline: Any) -> None:
    assert same_weights(baseline(p_max=0.0).result, baseline(adaptive_augmentation=False).result)


def test_settings_that_act_under_conditions(tmp_path: Path) -> None:
    assert not same_weights(run(steps=2, method="dco"), run(steps=2, method="dco", dco_beta=1.0))
    assert not same_weights(run(steps=2, method="tlora"), run(steps=2, method="tlora", min_rank=4))
    assert not same_weights(run(**ALL_ACT, attn_schedule="indicator"), run(**ALL_ACT))
    warm = {"steps": 2, "lr_schedule": "constant_with_warmup"}
    assert not same_weights(run(**warm, warmup_steps=3), run(**warm))
    courses = [run(lr_schedule=schedule) for schedule in get_args(LrSchedule) if schedule != "constant_with_warmup"]
    assert not any(same_weights(a, b) for a, b in itertools.combinations(courses, 2))
    wide = {"steps": 1, "images": pictures(2, height=48, width=96)}
    assert not same_weights(run(**wide), run(**wide, bucket_multiple=32))
    kept = {"steps": 2, "prior_images": pictures(2, seed=5)}
    assert not same_weights(run(**kept), run(**kept, prior_preservation_weight=0.1))
    assert not same_weights(run(**kept), run(**kept, class_caption="my {class_word}"))
    run(identifier="mine", steps=1, output_dir=tmp_path / "named")
    assert (tmp_path / "named" / "mine.safetensors").exists()


def test_gradient_checkpointing_changes_memory_and_no_weight() -> None:
    assert same_weights(run(gradient_checkpointing=True), run(gradient_checkpointing=False))


def test_watching_the_indicator_changes_what_is_seen_and_no_weight() -> None:
    blind, seeing = run(method="dreambooth"), run(method="dreambooth", watch_indicator=True)
    assert same_weights(blind, seeing)
    assert blind.gamma is not None and seeing.gamma is not None
    assert blind.gamma.max() == 0 and seeing.gamma.max() > 0


def test_preview_settings_change_the_preview() -> None:
    def drawn(**settings: Any) -> bytes:
        recorder = Recorder()
        run(steps=1, preview_every=1, on_event=recorder, **settings)
        return next(event for event in recorder.events if isinstance(event, PreviewEvent)).tuned[0].tobytes()

    base = drawn()
    assert base == drawn()
    for change in (
        {"preview_steps": 3},
        {"preview_guidance": 1.0},
        {"preview_seed": 1},
        {"preview_prompts": ("a dog",)},
    ):
        assert drawn(**change) != base, change


def test_the_balance_of_the_terms_is_logged_when_due() -> None:
    recorder = Recorder()
    run(steps=4, balance_every=2, on_event=recorder)
    assert [event.grad_norm_terms is not None for event in recorder.steps] == [True, False, True, False]
    terms = recorder.steps[2].grad_norm_terms
    assert (
        terms is not None
        and set(terms) == {"denoising", "stabilization", "alignment"}
        and all(value > 0 for value in terms.values())
    )


def test_a_balance_with_a_gradient_that_overflowed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = torch.tensor([math.inf])
    monkeypatch.setattr(step_values, "_gradients", lambda loss, parameters: [infinite] * len(parameters))
    recorder = Recorder()
    run(steps=1, balance_every=1, watch_drift=False, on_event=recorder)
    assert recorder.steps[0].grad_norm_terms is None


def test_prior_preservation_has_its_part_in_the_balance_and_moves_no_weight_by_it() -> None:
    norms, trained = dict[float, float](), list[TrainResult]()
    for weight, every in ((1.0, 1), (2.0, 1), (2.0, 0)):
        recorder = Recorder()
        settings: dict[str, Any] = {"prior_preservation_weight": weight, "balance_every": every, "accumulation": 2}
        trained.append(run(steps=1, prior_images=pictures(seed=5), on_event=recorder, **settings))
        if every:
            terms = recorder.steps[0].grad_norm_terms
            assert terms is not None and list(terms)[0] == "denoising" and terms["denoising"] > 0
            norms[weight] = terms["prior_preservation"]
    assert norms[2.0] == pytest.approx(2 * norms[1.0]) and norms[1.0] > 0
    assert same_weights(trained[1], trained[2])


def test_every_field_of_the_config_is_tested_here() -> None:
    """A new setting needs a test of its effect: this list grows with it."""
    elsewhere = {
        "identifier",
        "gradient_checkpointing",
        "dco_beta",
        "min_rank",
        "warmup_steps",
        "bucket_multiple",
        "class_caption",
        "prior_preservation_weight",
        "watch_indicator",
        "balance_every",
        "snapshot_every",
        "preview_every",
        "preview_prompts",
        "preview_steps",
        "preview_guidance",
        "preview_seed",
        "watch_drift",  # tests/test_drift.py
        "drift_prompts",
        "unseen_prompt",  # tests/test_filmstrip.py
        "stop",  # tests/test_stopping.py
        "memory",  # tests/test_room.py
        "compile_blocks",  # tests/test_compiled.py
        "channels_last",
    }
    fields: set[str] = set()
    for name, value in quick_config().to_dict().items():
        fields |= set(value) if isinstance(value, dict) else {name}
    assert fields == set(CHANGES) | elsewhere


def test_a_failed_report_does_not_cost_the_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr(finish, "write_report", broken)
    recorder = Recorder()
    result = run(steps=1, output_dir=tmp_path, on_event=recorder)
    assert result.steps_done == 1 and (tmp_path / "toy_subject.safetensors").exists()
    assert any(isinstance(event, NoticeEvent) and "no fonts" in event.text for event in recorder.events)


@pytest.mark.usefixtures("no_report")
def test_a_run_whose_states_are_gone_is_refused_and_keeps_its_loras(tmp_path: Path) -> None:
    run(steps=4, snapshot_every=1, output_dir=tmp_path / "run")
    for state in (tmp_path / "run").rglob("state.json"):
        state.unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="no state that can be read"):
        run(steps=6, snapshot_every=1, output_dir=tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_report")
def test_a_run_without_a_snapshot_starts_again(tmp_path: Path) -> None:
    run(steps=2, output_dir=tmp_path / "run")
    for folder in (tmp_path / "run" / "snapshots").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    for file in (tmp_path / "run").glob("toy_subject*.safetensors"):  # as of one killed before its first snapshot
        file.unlink()
    assert same_weights(run(steps=2, output_dir=tmp_path / "run", resume=True), run(steps=2))


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    run(steps=3, output_dir=tmp_path)
    with pytest.raises(InputError, match="at step 3 already"):
        run(steps=2, output_dir=tmp_path, resume=True)


def test_a_stop_asked_for_during_set_up_ends_the_run_normally(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        raise StopTraining

    result = run(identifier_mode="word", identifier="toy", output_dir=tmp_path, on_event=stop)
    assert result.stopped and result.steps_done == 0


def test_a_model_without_attention_in_the_chosen_part_is_refused() -> None:
    parts = tiny_components("sdxl")
    parts.unet = tiny_unet_without_decoder_attention()
    with pytest.raises(InputError, match="dist_layers is up"):
        run(parts)
    assert run(parts, dist_layers="all", attn_layers="all", steps=1).steps_done == 1


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("method", "measured"), [("apt", True), ("dreambooth", False), ("dco", True)])
def test_the_file_says_gamma_where_it_was_measured(method: str, measured: bool, tmp_path: Path) -> None:
    run(method=method, steps=2, output_dir=tmp_path)
    with safe_open(tmp_path / "toy_subject.safetensors", "pt") as file:
        assert ("apt_summary" in (file.metadata() or {})) is measured


@pytest.mark.parametrize("attends", [True, False])
def test_a_model_without_decoder_attention_gets_its_report(attends: bool, tmp_path: Path) -> None:
    """Nothing is aligned, so the figure shows the layers there are, or is left out."""
    parts = tiny_components("sdxl")
    parts.unet = tiny_unet_without_decoder_attention()
    if not attends:
        parts.network = SelfAttentionAlone()
    result = run(parts, method="dreambooth", steps=1, output_dir=tmp_path)
    assert result.report is not None and result.notices == []
    assert (tmp_path / "attention.png").exists() is attends


class SelfAttentionAlone(StableDiffusion):
    def attention(self, module: nn.Module, part: Layers) -> dict[str, AttentionLayer]:
        return {}


def test_an_adapter_already_on_the_unet_is_refused_and_stays() -> None:
    parts = tiny_components()
    add_adapter(parts.unet, AdapterConfig(rank=2, alpha=2))
    with pytest.raises(InputError, match="already has an adapter"):
        run(parts)
    assert len(Adapter(parts.unet).parameters) > 0


def test_a_failed_set_up_leaves_the_model_as_it_was() -> None:
    def fail(event: Any) -> None:
        raise ValueError("a bug in the callback")

    parts = tiny_components()
    with pytest.raises(ValueError, match="a bug"):
        run(parts, identifier_mode="word", identifier="toy", on_event=fail)  # while it hears that the word is the class
    assert not any("lora" in name for name, _ in parts.unet.named_parameters()) and not parts.unet.training

"""What a run is and who may train in its folder: another model, name or precision is another run; one at a time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apt_train.errors import InputError
from apt_train.events import BusyEvent, Event, NoticeEvent, StepEvent, StopTraining
from apt_train.families.components import Components
from apt_train.run.config_file import read_config
from apt_train.run.folder import RunFolder
from apt_train.run.log import read_log
from tests.tiny import schedule_of, tiny_components, unet_of
from tests.training import Recorder, pictures, run, same_weights

pytestmark = pytest.mark.usefixtures("no_report")


def predicting_v() -> Components:
    parts = tiny_components()
    return dataclasses.replace(parts, schedule=dataclasses.replace(schedule_of(parts), prediction="v_prediction"))


def with_another_schedule() -> Components:
    parts = tiny_components()
    schedule = schedule_of(parts)
    return dataclasses.replace(parts, schedule=dataclasses.replace(schedule, alphas_cumprod=schedule.alphas_cumprod**2))


# -- what is another run


@pytest.mark.parametrize("other", [predicting_v, with_another_schedule])
def test_the_same_weights_under_another_schedule_are_another_run(tmp_path: Path, other: Any) -> None:
    run(steps=1, output_dir=tmp_path)
    with pytest.raises(InputError, match="another checkpoint"):
        run(other(), steps=2, output_dir=tmp_path, resume=True)
    assert run(steps=2, output_dir=tmp_path, resume=True).steps_done == 2


@pytest.mark.parametrize(("caption", "is_the_same"), [("bob next to a toy", False), ("a toy on grass", True)])
def test_another_name_is_another_run_only_where_a_caption_says_it(
    tmp_path: Path, caption: str, is_the_same: bool
) -> None:
    images = pictures(captions=[caption] * 3)
    hashes = []
    for name in ("bob", "ann"):
        run(images=images, identifier=name, steps=1, output_dir=tmp_path / name)
        hashes.append(read_config(tmp_path / name).content["digest"])
    assert (hashes[0] == hashes[1]) is is_the_same


# -- the same components again


def half() -> dict[str, Any]:
    return {"precision": "bf16", "steps": 4, "snapshot_every": 2}


def test_a_model_that_was_trained_on_in_half_precision_gives_the_same_run_again(tmp_path: Path) -> None:
    """The identifier starts from the rows as they were loaded, and not from rounded ones."""
    again = tiny_components()
    first = run(again, **half())
    assert same_weights(run(again, **half()), first) and same_weights(run(**half()), first)
    run(again, **{**half(), "steps": 2}, output_dir=tmp_path)
    assert same_weights(run(again, **half(), output_dir=tmp_path, resume=True), first)


def test_a_rounded_model_is_refused_where_it_was_to_be_exact() -> None:
    used = tiny_components()
    with pytest.raises(InputError, match="bucket_multiple"):
        run(used, precision="bf16", bucket_multiple=3)  # comes to no cast
    run(used, precision="fp32", steps=1)
    run(used, precision="bf16", steps=1)
    with pytest.raises(InputError, match=r"rounded this model to torch\.bfloat16.*load the checkpoint again"):
        run(used, precision="fp32", steps=1)
    assert run(used, precision="bf16", steps=1).steps_done == 1


def test_a_model_that_came_in_half_precision_is_trained_in_fp32_between_runs_in_it() -> None:
    """Its weights are as loaded all the while, so nothing is refused and every run is the one on a fresh model."""
    fresh = half_model()
    first = {precision: run(half_model(), precision=precision, steps=1) for precision in ("fp32", "bf16")}
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        assert same_weights(run(fresh, precision=precision, steps=1), first[precision])


def half_model() -> Components:
    parts = tiny_components()
    for module in (parts.unet, *(encoder.model for encoder in parts.text_encoders)):
        nn.Module.to(module, torch.bfloat16)
    return parts


# -- one at a time


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_trains(tmp_path: Path) -> None:
    refused: list[str] = []

    def second(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 2:
            with pytest.raises(InputError) as caught:
                run(output_dir=tmp_path, resume=True)
            refused.append(str(caught.value))

    run(output_dir=tmp_path, on_event=second)
    assert len(refused) == 1 and "by another process" in refused[0]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl").lines] == [1, 2, 3, 4]
    assert run(steps=5, output_dir=tmp_path, resume=True).steps_done == 5


def test_it_is_refused_before_its_model_takes_any_room(tmp_path: Path) -> None:
    """Which on one card would end in "out of memory", of either of the two."""

    def encode(_: torch.Tensor) -> Any:
        raise AssertionError("the VAE ran")

    run(steps=1, output_dir=tmp_path)
    waiting = dataclasses.replace(tiny_components(), encode=encode)
    with RunFolder(tmp_path, "toy_subject").held(), pytest.raises(InputError, match="by another process"):
        run(waiting, steps=2, output_dir=tmp_path, resume=True)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_of_several_processes_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own, and MPI's, by which `accelerate launch --cpu` starts several."""
    monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match="2 processes"):
        run(output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(name, "1")
    assert run(steps=1).steps_done == 1


# -- what stays in the folder


def test_a_resumed_run_keeps_what_its_first_caller_had_recorded(tmp_path: Path) -> None:
    run(steps=1, output_dir=tmp_path, record={"inputs": {"images": "here"}, "note": 1})
    run(steps=2, output_dir=tmp_path, resume=True, record={"note": 2})
    kept = read_config(tmp_path).content
    assert kept["inputs"] == {"images": "here"} and kept["note"] == 2 and kept["config"]["steps"] == 2


def test_a_run_that_fails_in_its_first_step_leaves_no_lora_and_no_full_folder(tmp_path: Path) -> None:
    broken = tiny_components()
    unet_of(broken).conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not a number"):
        run(broken, output_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert run(output_dir=tmp_path).steps_done == 4


@pytest.mark.parametrize("error", [RuntimeError("no such kernel"), StopTraining()])
def test_before_the_first_step_nothing_is_exported(tmp_path: Path, error: Exception) -> None:
    """An untrained LoRA under the final name would be taken for the result."""

    def fail(event: Event | None) -> None:
        if not isinstance(event, BusyEvent):
            raise error

    settings = {"output_dir": tmp_path, "preview_every": 1, "snapshot_every": 1}
    broken = tiny_components()
    if isinstance(error, StopTraining):
        assert run(on_event=fail, identifier_mode="word", identifier="toy", **settings).stopped  # at its first notice
    else:
        unet_of(broken).conv_in.register_forward_pre_hook(lambda *_: fail(None))
        with pytest.raises(RuntimeError, match="no such kernel"):
            run(broken, **settings)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"config.json", "log.jsonl"}
    assert run(**settings, record={"mine": 1}).steps_done == 4
    assert read_config(tmp_path).content["mine"] == 1


def test_a_new_run_inherits_nothing_of_one_that_never_stepped(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, NoticeEvent):
            raise StopTraining

    run(output_dir=tmp_path, identifier_mode="word", identifier="toy", on_event=stop, record={"inputs": "old"})
    assert read_config(tmp_path).content["inputs"] == "old"
    run(steps=1, output_dir=tmp_path)
    assert "inputs" not in read_config(tmp_path).content


def test_a_run_with_a_step_is_never_replaced(tmp_path: Path) -> None:
    run(steps=1, output_dir=tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(InputError, match="already holds a run"):
        run(output_dir=tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_preview_steps_beyond_the_schedule_are_refused_before_training(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(InputError, match="preview_steps is 1500.*give 1000 or fewer"):
        run(preview_every=2, preview_steps=1500, output_dir=tmp_path / "run", on_event=recorder)
    assert not recorder.steps and not (tmp_path / "run").exists()
    assert json.dumps(run(preview_steps=1500).steps_done) == "4"  # none are drawn


# -- precision that overflows


@pytest.fixture
def poisoned_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaler as fp16 has it, and gradients that are not numbers behind a loss that is one."""
    from apt_train.training import setup, update

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(setup.torch.amp, "GradScaler", lambda *_, **__: scaler("cpu", enabled=True))
    plain = update._backward

    def backward(run_: Any, loss: torch.Tensor) -> None:
        plain(run_, loss)
        for parameter in run_.trainable.values():
            parameter.grad = torch.full_like(parameter, float("nan"))

    monkeypatch.setattr(update, "_backward", backward)


@pytest.mark.usefixtures("poisoned_gradients")
def test_an_overflow_that_no_smaller_scale_mends_ends_the_run(tmp_path: Path) -> None:
    """Seventeen halvings bring the scale from 65536 below one."""
    with pytest.raises(InputError, match="gradient became infinite or not a number at step 18"):
        run(steps=40, output_dir=tmp_path)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl").lines] == list(range(1, 18))


def test_norms_that_overflow_are_not_written_into_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apt_train.training import update

    plain = torch.autograd.grad
    monkeypatch.setattr(
        update.torch.autograd, "grad", lambda *a, **k: [g if g is None else g * float("inf") for g in plain(*a, **k)]
    )
    run(steps=2, balance_every=1, output_dir=tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for text in (tmp_path / "log.jsonl").read_text().splitlines():
        assert "grad_norm_terms" not in json.loads(text, parse_constant=refuse)


# -- memory


def test_no_room_for_the_vae_is_told_with_what_would_make_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from apt_train.data.latent_bank import LatentBank

    encode = LatentBank._encode

    def full(bank: Any, image: int, variant: int) -> Any:
        if variant:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode(bank, image, variant)

    monkeypatch.setattr(LatentBank, "_encode", full)
    with pytest.raises(InputError, match="VAE encodes augmented pictures.*identifier_mode word.*adaptive_augmentation"):
        run(steps=8)

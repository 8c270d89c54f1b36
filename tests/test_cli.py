"""The command line, as its user meets it: the main job from files, and one sentence for everything that is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import apt_train
from apt_train import cli
from apt_train.errors import InputError
from apt_train.families.components import Components
from tests.command_line import actions_of, commands
from tests.forked import Forked
from tests.lora_files import metadata_of
from tests.signals import hearing
from tests.synthetic_run import plausible_log, write_run


def arguments(model: Path, photos: Path, output: Path, *more: str) -> list[str]:
    return [
        "run",
        "--checkpoint",
        str(model),
        "--images",
        str(photos),
        "--class-word",
        "toy",
        "--steps",
        "3",
        "--rank",
        "2",
        "--output",
        str(output),
        "--device",
        "cpu",
        *more,
    ]


def refused(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr; exit code 2."""
    assert cli.main(list(command)) == 2
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("apt-train: ")]
    assert len(lines) == 1 and "Traceback" not in shown, shown
    return lines[0]


def test_run_writes_a_lora_and_resume_and_report_go_on_from_it(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main(arguments(model, photos, output)) == 0
    shown = capsys.readouterr()
    assert "toy_subject.safetensors" in shown.out and "loss" in shown.err
    first = load_file(output / "toy_subject.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if "lora_up" in name)
    assert cli.main(["resume", str(output), "--steps", "5", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    (output / "indicator.png").unlink()
    assert cli.main(["report", str(output)]) == 0
    assert (output / "indicator.png").exists()
    assert cli.main(arguments(model, photos, tmp_path / "five", "--steps", "5")) == 0
    assert (output / "toy_subject.safetensors").read_bytes() == (
        tmp_path / "five" / "toy_subject.safetensors"
    ).read_bytes()


def test_a_report_that_could_not_be_written_is_told_and_not_named(
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The LoRA is there, so the run is done; asked for alone, a failed report is an error."""

    def full(path: Path, _text: str) -> None:
        raise InputError(f"{path.name} could not be written, the disk is full: free space.")

    out = tmp_path / "run"
    assert cli.main(arguments(model, photos, out, "--steps", "1")) == 0
    assert f"Curves and verdict: {out / 'report.md'}" in capsys.readouterr().out
    monkeypatch.setattr("apt_train.report.write.write_text", full)
    assert cli.main(["resume", str(out), "--steps", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "LoRA: " in told.out and "report.md" not in told.out
    assert "but the report failed (report.json could not be written, the disk is full: free space): try `" in told.err
    assert cli.main(["report", str(out)]) == 2
    assert capsys.readouterr().err.startswith("apt-train: report.json could not be written")


def test_options_reach_the_run(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--method",
        "dreambooth",
        "--no-adaptive-augmentation",
        "--temperature",
        "auto",
        "--augment-kinds",
        "affine",
        "flip",
        "--identifier",
        "rex",
        "--identifier-mode",
        "word",
        "--alpha",
        "1.5",
        "--gradient-checkpointing",
        "--preview-prompts",
        "a {subject}",
        "a dog",
    ]
    assert cli.main(arguments(model, photos, tmp_path / "out", *more)) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "--temperature does nothing without --watch-indicator.",
        "--augment-kinds does nothing under --method dreambooth.",
        "--preview-prompts does nothing without --preview-every.",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert config["method"] == "dreambooth" and config["apt"]["adaptive_augmentation"] is False
    assert config["apt"]["temperature"] == "auto" and config["apt"]["augment_kinds"] == ["affine", "flip"]
    assert config["adapter"]["alpha"] == 1.5 and config["gradient_checkpointing"] is True
    assert config["output"]["preview_prompts"] == ["a {subject}", "a dog"]
    assert (tmp_path / "out" / "rex.safetensors").exists() and not (
        tmp_path / "out" / "rex_embedding.safetensors"
    ).exists()


UNREAD = {
    "--min-rank 2 --dco-beta 5": ["--dco-beta and --min-rank do nothing under --method apt."],
    "--preset strong-likeness --attn-weight 1 --p-max 0.5": [
        "--p-max does nothing without --adaptive-augmentation.",
        "--attn-weight does nothing without --alignment.",
    ],
    "--no-stabilization --dist-mode raw": ["--dist-mode does nothing without --stabilization."],
    "--identifier-mode word --init-word bear": ["--init-word does nothing with --identifier-mode word."],
    "--augment-kinds flip color --max-zoom 2 --mask-fill": [
        "--max-zoom and --mask-fill do nothing with --augment-kinds flip color."
    ],
    "--augment-kinds flip affine --max-zoom 2": [],
    "--method dco --max-degrees 3": ["--max-degrees does nothing under --method dco."],
    "--no-adaptive-augmentation --max-degrees 3": ["--max-degrees does nothing without --adaptive-augmentation."],
    "--method dreambooth --lazy-prior 2": ["--lazy-prior does nothing without --watch-indicator."],
    "--method dreambooth --lazy-prior 2 --watch-indicator": [],
    "--class-caption x": ["--class-caption does nothing without --prior-images."],
    "--class-caption x --prior-images photos": [],
    "--drift-prompts a --no-watch-drift": ["--drift-prompts does nothing without --watch-drift."],
    "--drift-prompts a --snapshot-every 0": ["--drift-prompts does nothing without --snapshot-every."],
    "--method tlora --min-rank 2 --no-alignment --watch-indicator --bins 5": [],
    "--preview-every 5 --preview-seed 3 --drift-prompts a --steps 5": [],
    "--preview-every 5 --steps 4": ["--preview-every does nothing in so few steps as 4."],
}


@pytest.mark.parametrize("given", UNREAD)
def test_an_option_without_effect_is_told(given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr("builtins.print", said.append)
    monkeypatch.setattr(cli, "_train", lambda *_, **__: 0)  # they are told before anything is read
    assert cli.main(arguments(tmp_path, tmp_path, tmp_path / "out", "--rank", "4", *given.split())) == 0
    assert [text for text in said if not text.startswith("Preset ")] == UNREAD[given]


@pytest.mark.parametrize(
    ("command", "name"),
    [(name, action.dest) for name in sorted(commands()) for action in actions_of(name) if action.nargs == "+"],
)
def test_a_list_may_be_given_in_several_options(command: str, name: str) -> None:
    """Else all but the last are lost, and nobody is told."""
    option = f"--{name.replace('_', '-')}"
    places = {"run": PLACES["run"], "inspect": PLACES["inspect"]}[command]
    given = cli.build_parser().parse_args([*places, option, "1", "2", option, "3"])
    assert list(map(float, getattr(given, name))) == [1, 2, 3]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"apt-train {apt_train.__version__}\n"


def test_a_demo_takes_the_next_free_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    asked: list[Path] = []
    monkeypatch.setattr("apt_train.demo.demo.run_demo", lambda output, *, steps: asked.append(output))
    assert cli.main(["demo"]) == cli.main(["demo", "--output", "here"]) == 0
    assert asked == [Path("runs/demo-2"), Path("here")]


PLACES = {  # the command, and what it reads
    "run": ["run", "--checkpoint", "m", "--images", "p", "--class-word", "toy", "--output", "o", "--device", "cpu"],
    "resume": ["resume", "run", "--device", "cpu"],
    "check": ["check", "p", "--sheet", "s.png"],
    "report": ["report", "run"],
    "inspect": ["inspect", "l.safetensors", "--checkpoint", "m", "--out", "o", "--device", "cpu"],
    "demo": ["demo", "--output", "o"],
}


@pytest.mark.parametrize("command", PLACES)
def test_a_place_that_takes_nothing_is_refused_before_anything_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the minutes of work that were to be written there."""

    def refuse(path: Path) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def too_early(*_: object, **__: object) -> None:
        pytest.fail("it was read before the place was tried")

    write_run(tmp_path / "run", plausible_log(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("apt_train.disk.files._create", refuse)
    for reader in ("families.load.load_checkpoint", "data.dataset.load_images", "lora_check.lora_file.read_lora",
                   "report.write_report", "demo.demo.load_checkpoint", "demo.demo.load_images"):  # fmt: skip
        monkeypatch.setattr(f"apt_train.{reader}", too_early, raising=False)
    assert "is not writable" in refused(PLACES[command], capsys)


def test_every_command_is_tried() -> None:
    assert set(PLACES) == commands()


def test_every_option_says_what_it_is() -> None:
    assert not [(name, action.dest) for name in commands() for action in actions_of(name) if not action.help]


@pytest.mark.parametrize("name", ["demo.png", "demo.json"])
def test_a_demo_writes_over_no_file_of_the_user(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"mine")
    assert f"holds a {name} already: choose another output folder" in refused(
        ["demo", "--output", str(tmp_path)], capsys
    )
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_a_demo_of_which_one_run_is_there_trains_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo" / "apt").mkdir(parents=True)
    (tmp_path / "demo" / "apt" / "mine.txt").touch()
    assert "is not empty" in refused(["demo", "--output", str(tmp_path / "demo")], capsys)
    assert not (tmp_path / "demo" / "dreambooth").exists()


# -- what bad input gets


def _no_images(model: Path, photos: Path, output: Path) -> list[str]:
    for file in photos.iterdir():
        file.unlink()
    return arguments(model, photos, output)


def _bad_image(model: Path, photos: Path, output: Path) -> list[str]:
    (photos / "broken.png").write_bytes(b"not a picture")
    return arguments(model, photos, output)


def _zero_bytes(model: Path, photos: Path, output: Path) -> list[str]:
    (photos.parent / "empty.safetensors").write_bytes(b"")
    return arguments(photos.parent / "empty.safetensors", photos, output)


def _truncated(model: Path, photos: Path, output: Path) -> list[str]:
    whole = next((model / "unet").glob("*.safetensors")).read_bytes()
    (photos.parent / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    return arguments(photos.parent / "half.safetensors", photos, output)


def _pickle(model: Path, photos: Path, output: Path) -> list[str]:
    (photos.parent / "old.ckpt").write_bytes(b"PK\x03\x04 anything")
    return arguments(photos.parent / "old.ckpt", photos, output)


def _a_lora(model: Path, photos: Path, output: Path) -> list[str]:
    save_file(
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 4)},
        photos.parent / "l.safetensors",
    )
    return arguments(photos.parent / "l.safetensors", photos, output)


def _a_vae(model: Path, photos: Path, output: Path) -> list[str]:
    save_file(
        {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3), "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)},
        photos.parent / "v.safetensors",
    )
    return arguments(photos.parent / "v.safetensors", photos, output)


def _flux(model: Path, photos: Path, output: Path) -> list[str]:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(6, 2)}, photos.parent / "f.safetensors")
    return arguments(photos.parent / "f.safetensors", photos, output)


def _caption_without_subject(model: Path, photos: Path, output: Path) -> list[str]:
    (photos / "2.txt").write_text("a house by the sea")
    return arguments(model, photos, output)


def _other_run(model: Path, photos: Path, output: Path) -> list[str]:
    (photos.parent / "used").mkdir()
    (photos.parent / "used" / "config.json").write_text("{}")
    return arguments(model, photos, photos.parent / "used")


def _output_is_a_file(model: Path, photos: Path, output: Path) -> list[str]:
    (photos.parent / "file").write_text("")
    return arguments(model, photos, photos.parent / "file" / "below")


def _with(*more: str):  # noqa: ANN202 - a small factory of the functions above
    return lambda model, photos, output: arguments(model, photos, output, *more)


BAD = {
    "no images": (_no_images, "no usable pictures"),
    "unreadable image": (_bad_image, "broken.png"),
    "zero bytes": (_zero_bytes, "empty.safetensors"),
    "truncated": (_truncated, "half.safetensors"),
    "pickle": (_pickle, "pickle"),
    "a LoRA": (_a_lora, "LoRA"),
    "a VAE": (_a_vae, "VAE"),
    "FLUX": (_flux, "FLUX"),
    "missing checkpoint": (lambda m, p, o: arguments(Path("nowhere"), p, o), "does not exist"),
    "empty class word": (_with("--class-word", " "), "class_word"),
    "identifier characters": (_with("--identifier", "../up"), "identifier"),
    "caption without subject": (_caption_without_subject, "2.png"),
    "steps 0": (_with("--steps", "0"), "steps"),
    "steps no number": (_with("--steps", "many"), "steps"),
    "steps beyond any count": (_with("--steps", "1e99"), "steps"),
    "seed beyond 64 bits": (_with("--seed", "99999999999999999999"), "seed is 99999999999999999999"),
    "seed of thousands of digits": (_with("--seed", "9" * 5000), "seed"),
    "negative seed": (_with("--seed=-1"), "seed is -1"),
    "rank beyond 64 bits": (_with("--rank", str(10**30)), "rank is 1000000"),
    "learning rate of infinity": (_with("--learning-rate", "1e400"), "learning_rate is inf"),
    "learning rate of nan": (_with("--learning-rate", "nan"), "learning_rate is nan"),
    "learning rate beyond floats of 32 bits": (_with("--learning-rate", "1e300"), "learning_rate is 1e+300"),
    "negative weight": (_with("--dist-weight=-1"), "dist_weight is -1"),
    "class word of no letters": (_with("--class-word", "\udcff"), "class_word"),
    "resolution": (_with("--resolution", "60"), "resolution"),
    "unknown option": (_with("--stepz", "3"), "unknown option --stepz 3: see `apt-train run --help`"),
    "unknown method": (_with("--method", "magic"), "method"),
    "dco with lazy prior": (_with("--method", "dco", "--lazy-prior", "2"), "lazy_prior"),
    "another run": (_other_run, "already holds a run"),
    "output below a file": (_output_is_a_file, "file"),
    "unknown colour": (_with("--background", "blurple"), "blurple"),
    "unknown device": (_with("--device", "quantum"), "quantum"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    case: str, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, word = BAD[case]
    output = tmp_path / "out"
    command = make(model, photos, output)
    assert word.lower() in refused(command, capsys).lower()
    assert not output.exists()


def test_unwritable_and_full_disks_in_words(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system call itself fails, as folder modes do not bind a superuser."""
    import errno

    original = os.open

    def failing(path: Any, *rest: int, **more: int) -> int:
        if str(tmp_path / "out") in str(path) or str(path).startswith(str(tmp_path / ".")):
            raise OSError(failing.code, os.strerror(failing.code))
        return original(path, *rest, **more)

    monkeypatch.setattr(os, "open", failing)
    for code, word in ((errno.EACCES, "not writable"), (errno.ENOSPC, "disk is full")):
        failing.code = code
        assert word in refused(arguments(model, photos, tmp_path / "out"), capsys)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
def test_no_memory_to_read_a_model_is_told(
    error: Exception, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("apt_train.families.load.load_checkpoint", full)
    assert "Out of memory" in refused(arguments(tmp_path, photos, tmp_path / "out"), capsys)


def test_nan_latents_are_refused(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import apt_train.families.load as checkpoint

    load = checkpoint.load_checkpoint

    def broken(*args: Any, **more: Any) -> Components:
        parts = load(*args, **more)
        parts.encode = lambda image: (
            torch.full((1, 4, image.shape[-2] // 4, image.shape[-1] // 4), float("nan")),
            None,
        )
        return parts

    monkeypatch.setattr(checkpoint, "load_checkpoint", broken)
    assert "VAE" in refused(arguments(model, photos, tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()


def test_a_bad_image_is_skipped_on_request(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*_bad_image(model, photos, tmp_path / "out"), "--skip-bad-images"]
    assert cli.main(command) == 0
    assert "broken.png" in capsys.readouterr().err


def test_resume_and_report_of_a_folder_that_holds_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("resume", "report"):
        assert "config.json" in refused([command, str(tmp_path)], capsys)


def test_what_a_model_predicts_can_be_said_and_is_said_again_on_resume(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """Of a model that says nothing, or the wrong thing, of itself; the LoRA file says it on."""
    output = tmp_path / "out"
    assert cli.main(arguments(model, photos, output, "--prediction-type", "v_prediction")) == 0
    assert metadata_of(output / "toy_subject.safetensors")["modelspec.prediction_type"] == "v"
    assert cli.main(["resume", str(output), "--steps", "4", "--device", "cpu"]) == 0
    plain = json.loads((output / "config.json").read_text())
    del plain["inputs"]["prediction_type"]  # as before there was the option
    (output / "config.json").write_text(json.dumps(plain))
    assert cli.main(["resume", str(output), "--steps", "5", "--device", "cpu"]) == 2


def test_a_given_vae_and_zero_terminal_snr_are_kept_for_resume(model: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "vae", tmp_path / "vae")
    output, said = tmp_path / "out", ("--prediction-type", "v_prediction", "--zero-terminal-snr")
    assert cli.main(arguments(model, photos, output, *said, "--vae", str(tmp_path / "vae"))) == 0
    assert cli.main(["resume", str(output), "--steps", "4", "--device", "cpu"]) == 0
    record = json.loads((output / "config.json").read_text())
    assert record["inputs"]["vae"] == str(tmp_path / "vae") and record["inputs"]["zero_terminal_snr"] is True
    for forgotten in ("vae", "zero_terminal_snr"):  # another VAE or schedule is another run
        other = {**record, "inputs": {**record["inputs"], forgotten: None}}
        (output / "config.json").write_text(json.dumps(other))
        assert cli.main(["resume", str(output), "--steps", "5", "--device", "cpu"]) == 2


def test_notices_are_told_once_and_counted_at_the_end(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "again.png").write_bytes((photos / "0.png").read_bytes())
    assert cli.main(arguments(model, photos, tmp_path / "run", "--steps", "1")) == 0
    said = capsys.readouterr()
    assert said.err.count("are the same picture") == 1
    told = len((tmp_path / "run" / "notices.jsonl").read_text(encoding="utf-8").splitlines())
    words = "1 notice" if told == 1 else f"{told} notices"
    assert f"{words}, told above: see Notices in {tmp_path / 'run' / 'report.md'}" in said.out
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]) == 0
    again = capsys.readouterr()
    assert "are the same picture" not in again.err and f"{words}, told above" in again.out


def check_stopped_by(name: str, process: subprocess.Popen[str] | Forked, output: Path) -> None:
    """Send the signal after the first step: the run ends as done, and a resume goes on behind its last step."""
    assert process.stdout is not None and process.stderr is not None
    said = ""
    while not re.search(r"step \d+/", said):  # the plan before it speaks of steps, too
        said += (heard := process.stderr.read(80))
        assert heard, "the run ended before its first step"
    os.kill(process.pid, getattr(signal, name))
    out, told = process.stdout.read(), process.stderr.read()
    assert process.wait() == 0, told
    assert f"apt-train resume {output}" in out
    done = len((output / "log.jsonl").read_text().splitlines())
    assert done < 100000 and load_file(output / "toy_subject.safetensors")
    assert (output / "snapshots" / f"step_{done:06d}" / "state.safetensors").exists()
    assert cli.main(["resume", str(output), "--steps", str(done + 2), "--device", "cpu"]) == 0
    assert len((output / "log.jsonl").read_text().splitlines()) == done + 2


@pytest.mark.skipif(os.name == "nt", reason="forks, and sends SIGINT as a terminal does")
def test_ctrl_c_saves_exports_and_says_how_to_go_on(model: Path, photos: Path, tmp_path: Path) -> None:
    command = arguments(model, photos, tmp_path / "out", "--steps", "100000")
    process = Forked(lambda: cli.main(command))
    try:
        check_stopped_by("SIGINT", process, tmp_path / "out")
    finally:
        process.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends signals as a terminal does")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_so_does_a_process_started_by_the_user(name: str, model: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apt_train", *arguments(model, photos, tmp_path / "out", "--steps", "100000")]
    with hearing():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        check_stopped_by(name, process, tmp_path / "out")

"""A run's files: no two writers share a name, what is damaged is told and never used, what a user put there stays."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from apt_train import names
from apt_train.config import TrainConfig
from apt_train.errors import InputError
from apt_train.events import NoticeEvent, StepEvent
from apt_train.report import write_report
from apt_train.run import lock
from apt_train.run.config_file import read_config
from apt_train.run.curves import run_curves
from apt_train.run.folder import RunFolder
from apt_train.run.log import cut_log, read_log
from apt_train.run.optimizer_state import put_back, take
from apt_train.run.snapshot import check_kept, read_newest_state, write_snapshot
from apt_train.run.state import Damaged, State, check_state, most_state_bytes, read_state, write_state
from apt_train.training import finish
from apt_train.training.indicator import OverfitIndicator
from apt_train.verdict.run_files import read_run
from tests.damaged_runs import FILES
from tests.synthetic_run import plausible_log, write_run
from tests.training import Recorder, run, same_weights

QUICK: dict[str, Any] = {"method": "dreambooth", "identifier_mode": "word", "batch_size": 1, "watch_drift": False}


def notices(recorder: Recorder) -> str:
    return "\n".join(event.text for event in recorder.events if isinstance(event, NoticeEvent))


# -- names


@pytest.mark.parametrize("name", ["attention", "state", "Attention", "STATE"])
def test_a_name_that_is_a_file_of_every_run_is_refused_in_the_settings(name: str) -> None:
    with pytest.raises(InputError, match=f"identifier is '{name}', but every run has its own {name.lower()}.safetens"):
        TrainConfig(class_word="toy", identifier=name)


@pytest.mark.parametrize(("name", "word"), [("con", "reserved name on Windows"), ("x" * 151, "151 letters")])
def test_a_name_that_could_not_be_stored_everywhere_is_refused_in_the_settings(name: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        TrainConfig(class_word="toy", identifier=name)


@pytest.mark.parametrize("name", ["log", "config", "report", "lora", "snapshots", "checksums", "attention_embedding"])
def test_a_name_that_is_no_file_of_a_run_is_taken(name: str) -> None:
    assert TrainConfig(class_word="toy", identifier=name).name == name


def test_every_file_that_a_run_writes_is_in_the_list_that_names_are_checked_against(tmp_path: Path) -> None:
    """A new file: add it to apt_train/names.py, and no subject can be called like it."""
    settings = {"identifier": "config", "steps": 2, "snapshot_every": 1, "preview_every": 2, "balance_every": 1}
    result = run(output_dir=tmp_path, **settings)
    own = {names.lora_file("config"), names.embedding_file("config")}
    found = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    top = {path.name for path in found if len(path.parts) == 1}
    assert own <= top <= own | set(names.RUN_FILES)
    assert {path.parts[0] for path in found if len(path.parts) > 1} == set(names.RUN_FOLDERS)
    kept = {path.name for path in found if path.parts[0] == names.SNAPSHOTS}
    assert kept == own | set(names.SNAPSHOT_FILES)
    assert load_file(tmp_path / "config.safetensors").keys() == result.lora.keys()


@pytest.mark.parametrize(("mode", "way_out"), [("learned", "another identifier"), ("word", "train again")])
def test_an_older_run_of_such_a_name_says_what_happened(tmp_path: Path, mode: str, way_out: str) -> None:
    write_run(tmp_path, plausible_log(3))
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"] |= {"identifier": "state", "identifier_mode": mode}
    (tmp_path / "config.json").write_text(json.dumps(content))
    for read in (read_config, write_report, run_curves, lambda path: RunFolder.open_existing(path, "toy")):
        with pytest.raises(InputError, match=f"named 'state', whose LoRA was overwritten.*{way_out}"):
            read(tmp_path)


@pytest.mark.usefixtures("no_report")
def test_a_run_does_not_go_on_under_a_name_that_is_its_own_embedding(tmp_path: Path) -> None:
    run(steps=1, identifier="toy", output_dir=tmp_path, **{**QUICK, "identifier_mode": "learned"})
    with pytest.raises(InputError, match="identifier is 'toy_embedding', which"):
        run(steps=2, identifier="toy_embedding", output_dir=tmp_path, resume=True)


# -- config.json


def test_a_report_reads_config_json_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, plausible_log(3))
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), real(path))[1])
    write_report(tmp_path)
    assert read.count("config.json") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: "{", "not readable JSON"),
        (lambda c: "[" * 100_000, "not readable JSON"),
        (lambda c: b"\xff\xfe{\x00", "not readable JSON"),
        (lambda c: [], "holds no settings"),
        (lambda c: {**c, "config": 3}, "holds no settings"),
        (lambda c: {**c, "format": 2}, "not of a format"),
        (lambda c: {**c, "format": True}, "not of a format"),
        (lambda c: {name: value for name, value in c.items() if name != "format"}, "not of a format"),
    ],
)
def test_resume_report_and_monitor_accept_the_same_config(tmp_path: Path, damage: Any, message: str) -> None:
    write_run(tmp_path, plausible_log(3))
    damaged = damage(json.loads((tmp_path / "config.json").read_text()))
    text = damaged if isinstance(damaged, (str, bytes)) else json.dumps(damaged)
    (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    for read in (write_report, run_curves, lambda path: RunFolder.open_existing(path, "toy")):
        with pytest.raises(InputError, match=message):
            read(tmp_path)


@pytest.mark.parametrize("name", ["name", "digest"])
def test_resume_needs_what_a_run_is_compared_by(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, plausible_log(3))
    content = {**json.loads((tmp_path / "config.json").read_text()), "name": "toy", "digest": "0", "dtype": "x"}
    (tmp_path / "config.json").write_text(json.dumps({**content, name: None}))
    with pytest.raises(InputError, match=f"does not say its {name}"):
        RunFolder.open_existing(tmp_path, "toy")


def test_settings_out_of_range_are_refused_and_not_computed_with(tmp_path: Path) -> None:
    write_run(tmp_path, plausible_log(3))
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["apt"]["bins"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="bins is 1000000000"):
        run_curves(tmp_path)


# -- log.jsonl

LINES = plausible_log(6)


def a_line(**changes: Any) -> bytes:
    return json.dumps({**LINES[2], **changes}).encode()


BROKEN: dict[str, bytes] = {
    "no JSON": b"{nonsense",
    "garbage": b"\x00\xff\x13\x80 binary",
    "nested": b"[" * 200_000,
    "no object": b"[1, 2]",
    "step as text": a_line(step="3"),
    "step as float": a_line(step=3.0),
    "step true": a_line(step=True),
    "step zero": a_line(step=0),
    "step beyond all": a_line(step=10**30),
    "loss as text": a_line(loss="0.5"),
    "loss beyond floats": a_line(loss=10**400),
    "gamma as text": a_line(gamma=["high"] * 10),
    "gamma as number": a_line(gamma=0.5),
    "other bins": a_line(gamma=[0.5] * 9),
    "no loss": json.dumps({"step": 3}).encode(),
    "drift as list": a_line(drift=[1]),
    "numbers as list": a_line(numbers=["weight_norm"]),
    "numbers as number": a_line(numbers=5),
    "a number as text": a_line(numbers={"weight_norm": "big"}),
    "a number that is a formula": a_line(numbers={"$\\frac{": 1.0}),
    "a thousand numbers": a_line(numbers={f"n{i}": 1.0 for i in range(1000)}),
    "timesteps as text": a_line(timestep=["1"]),
    "huge": b'{"step": 3, "loss": 1, "x": "' + b"y" * (9 << 20) + b'"}',
}


def write_lines(folder: Path, lines: list[bytes]) -> Path:
    write_run(folder, LINES)
    (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def steps_as_read(folder: Path) -> list[list[int]]:
    """By report, monitor and resume, which cuts nothing here."""
    log, curves = read_run(folder).log, run_curves(folder)
    before = (folder / "log.jsonl").read_bytes()
    content, resumed = cut_log(folder / "log.jsonl", 6, 10)
    assert content == (folder / "log.jsonl").read_bytes() == before
    assert resumed == read_log(folder / "log.jsonl", 10)
    points = [point["step"] for point in curves["points"]]
    return [log.step.tolist(), points, [line["step"] for line in resumed.lines]]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_costs_no_other_and_is_told(tmp_path: Path, name: str) -> None:
    good = [json.dumps(line).encode() for line in LINES]
    folder = write_lines(tmp_path, [*good[:3], BROKEN[name], *good[3:]])
    assert steps_as_read(folder) == [[1, 2, 3, 4, 5, 6]] * 3
    log = read_log(folder / "log.jsonl", 10)
    assert log.left_out == [4] and "line 4 is left out" in log.notice()


def test_the_report_names_the_lines_that_it_leaves_out(tmp_path: Path) -> None:
    good = [json.dumps(line).encode() for line in LINES]
    folder = write_lines(tmp_path, [b"{nonsense", *good, b"\x00"])
    text = write_report(folder).read_text(encoding="utf-8")
    assert "for 6 steps. Lines 1, 8 of the log are unreadable or repeated and left out." in text
    assert json.loads((folder / "report.json").read_text())["left_out"] == [1, 8]


@pytest.mark.parametrize(
    ("broken", "said"), [(5, "lines 1, 2, 3, 4, 5 are"), (6, "lines 1, 2, 3, 4, 5 and 1 more are")]
)
def test_of_many_broken_lines_the_first_five_are_named(tmp_path: Path, broken: int, said: str) -> None:
    folder = write_lines(tmp_path, [*[b"{nonsense"] * broken, *[json.dumps(line).encode() for line in LINES]])
    assert said in read_log(folder / "log.jsonl").notice()


def test_of_a_step_logged_twice_the_last_counts_and_order_does_not(tmp_path: Path) -> None:
    lines = [LINES[1], LINES[0], {**LINES[2], "loss": 9.0}, LINES[2], LINES[5], LINES[3], LINES[4]]
    folder = write_lines(tmp_path, [json.dumps(line).encode() for line in lines])
    assert steps_as_read(folder) == [[1, 2, 3, 4, 5, 6]] * 3
    assert read_log(folder / "log.jsonl").lines == LINES and read_log(folder / "log.jsonl").left_out == [3]


def test_what_editors_of_other_systems_leave_is_no_damage(tmp_path: Path) -> None:
    text = "\r\n".join(json.dumps(line) for line in LINES)
    write_run(tmp_path, LINES)
    (tmp_path / "log.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert steps_as_read(tmp_path) == [[1, 2, 3, 4, 5, 6]] * 3 and not read_log(tmp_path / "log.jsonl").left_out


def test_a_log_is_cut_to_the_state_and_keeps_what_it_cannot_read(tmp_path: Path) -> None:
    good = [json.dumps(line).encode() for line in LINES]
    folder = write_lines(tmp_path, [*good[:2], b"{nonsense", *good[2:], a_line(step=99), b"\xff"])
    with open(folder / "log.jsonl", "ab") as file:
        file.write(b'{"step": 7, "lo')
    assert cut_log(folder / "log.jsonl", 4)[1] == read_log(folder / "log.jsonl")
    assert (folder / "log.jsonl").read_bytes().split(b"\n") == [*good[:2], b"{nonsense", *good[2:4], b"\xff", b""]


def test_a_last_line_that_lost_its_end_is_ended(tmp_path: Path) -> None:
    write_run(tmp_path, LINES)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes().rstrip())
    assert cut_log(log, 6)[1] == read_log(log)
    assert log.read_bytes().endswith(b"}\n") and len(read_log(log).lines) == 6


@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_keeps_and_tells_what_it_cannot_read_of_its_log(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    first, *rest = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "log.jsonl").write_bytes(first + b"{nonsense\n" + b"".join(rest[1:]))
    recorder = Recorder()
    resumed = run(steps=5, output_dir=folder, resume=True, on_event=recorder, snapshot_every=2, **QUICK)
    assert len(resumed.losses) == 4 and resumed.gamma is not None and resumed.gamma.shape == (4, 10)
    assert [line["step"] for line in read_log(folder / "log.jsonl").lines] == [1, 3, 4, 5]
    assert b"\n{nonsense\n" in (folder / "log.jsonl").read_bytes()
    assert "line 2 is left out" in notices(recorder) and "lacks steps that were trained (1 of 4)" in notices(recorder)


# -- the state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with a state at 2 and at 4."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report", lambda _: None)
        run(steps=4, snapshot_every=2, output_dir=folder, **QUICK)
    return folder


def a_run() -> Any:
    """What a state is checked against."""
    trained = torch.nn.Parameter(torch.ones(2, 3))
    return SimpleNamespace(
        trainable={"a": trained},
        optimizer=torch.optim.AdamW([trained]),
        indicator=OverfitIndicator(bins=2),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def a_state(step: int = 5) -> State:
    moments = {f"optimizer/{key}/a": torch.full((2, 3), 0.5) for key in ("exp_avg", "exp_avg_sq")}
    tensors = {"a": torch.full((2, 3), 0.25), "optimizer/step/a": torch.tensor(5.0), **moments}
    values = {"step": step, "indicator": OverfitIndicator(bins=2).state_dict(), "variants": 1, "scaler": {}}
    return State(tensors, {**values, "optimizer": json.loads(json.dumps(take(a_run().optimizer, {})[1]))})


def test_a_flipped_bit_anywhere_in_a_state_is_noticed(tmp_path: Path) -> None:
    write_state(tmp_path, a_state())
    for name in names.STATE_TENSORS, names.STATE_VALUES:
        whole = (tmp_path / name).read_bytes()
        for place in range(len(whole)):
            for damaged in {whole[place] ^ 1 << place % 8, 0} - {whole[place]}:
                (tmp_path / name).write_bytes(whole[:place] + bytes([damaged]) + whole[place + 1 :])
                try:
                    found = read_state(tmp_path)
                except Damaged:
                    continue
                assert found.values == a_state().values, (name, place, damaged)  # white space of the JSON
                assert name == names.STATE_VALUES
        (tmp_path / name).write_bytes(whole)
    assert read_state(tmp_path).values == a_state().values


@pytest.mark.parametrize("name", [names.STATE_TENSORS, names.STATE_VALUES])
@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: bytes(len(b)), lambda b: b"[]"]
)
def test_a_cut_or_emptied_state_is_noticed(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    write_state(tmp_path, a_state())
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(Damaged, match=name):
        read_state(tmp_path)


def claim(path: Path, size: int) -> None:
    """A safetensors file with a hole of that many bytes, which its header says are one tensor."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)


STRANGE: dict[str, Callable[[Path], object]] = {
    "a terabyte": FILES["a terabyte"](""),
    "a terabyte behind a sound beginning": lambda path: os.truncate(path, 1 << 40),
    "a terabyte that its header claims": lambda path: claim(path, 1 << 40),
    "a pipe": FILES["a pipe"](""),
    "a link to a device": FILES["a link to a device"](""),
}


@pytest.mark.skipif(os.name == "nt", reason="no pipes, no holes in files")
@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("name", [names.STATE_TENSORS, names.STATE_VALUES, names.CHECKSUMS, "toy_subject.safetensors"])
@pytest.mark.parametrize("older", [False, True])
def test_what_has_no_end_is_damaged_and_not_read(
    trained: Path, tmp_path: Path, name: str, strange: str, older: bool
) -> None:
    folder = shutil.copytree(trained / "snapshots" / "step_000004", tmp_path / "step")
    if older:
        write_old_state(folder, a_state())
        if name != names.CHECKSUMS:
            (folder / names.CHECKSUMS).unlink()
    STRANGE[strange](folder / name)
    with pytest.raises(Damaged, match=name):
        read_state(folder) if name in (names.STATE_TENSORS, names.STATE_VALUES) else check_kept(
            folder / "toy_subject.safetensors"
        )


@pytest.mark.skipif(os.name == "nt", reason="no holes in files")
def test_a_state_of_more_than_the_run_can_hold_is_not_read(tmp_path: Path) -> None:
    """A gigabyte would be hashed within a second or two; a hundred would not."""
    folder = tmp_path / "step_000005"
    folder.mkdir()
    write_state(folder, a_state())
    claim(folder / names.STATE_TENSORS, 1 << 30)
    run = a_run()
    assert most_state_bytes(run) < 1 << 25
    state, faults = read_newest_state(tmp_path, run)
    assert state is None and "larger than any" in faults[0]


def test_a_state_of_a_newer_version_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_train.run.state.FORMAT", 3)
    write_state(tmp_path, a_state())
    monkeypatch.undo()
    with pytest.raises(InputError, match="another version"):
        read_state(tmp_path)


def write_old_state(folder: Path, state: State) -> None:
    """As written before states had checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state.tensors, folder / names.STATE_TENSORS)
    first = {name: value for name, value in state.values.items() if name != "optimizer"}
    (folder / names.STATE_VALUES).write_text(json.dumps(first))


STRANGE_SETTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no groups": lambda o: o.pop("groups"),
    "groups a number": lambda o: o.update(groups=5),
    "groups by name": lambda o: o.update(groups={"0": o["groups"][0]}),
    "a group more": lambda o: o["groups"].append({}),
    "a group that is none": lambda o: o.update(groups=["lr"]),
    "rate as text": lambda o: o["groups"][0].update(lr="fast"),
    "rate infinite": lambda o: o["groups"][0].update(lr=float("inf")),
    "one beta": lambda o: o["groups"][0].update(betas=[0.9]),
    "switch as text": lambda o: o["groups"][0].update(amsgrad="yes"),
    "values of a stranger": lambda o: o["values"].update(b={"k": 1}),
    "values a list": lambda o: o.update(values=[]),
}


@pytest.mark.parametrize("name", STRANGE_SETTINGS)
def test_settings_of_an_optimizer_that_no_run_has_are_damage(tmp_path: Path, name: str) -> None:
    """Also where the checksum fits: it says who wrote the file, not that it makes sense."""
    state = a_state()
    check_state(a_run(), state)
    STRANGE_SETTINGS[name](state.values["optimizer"])
    with pytest.raises(Damaged, match=r"state\.json"):
        check_state(a_run(), state)


def test_a_setting_that_another_torch_has_is_left_out() -> None:
    state, fresh = a_state(), a_run()
    state.values["optimizer"]["groups"][0] |= {"newer": "x", "lr": 0.5}
    check_state(fresh, state)
    put_back(fresh.optimizer, fresh.trainable, state.tensors, state.values["optimizer"])
    assert fresh.optimizer.param_groups[0]["lr"] == 0.5 and "newer" not in fresh.optimizer.param_groups[0]
    assert fresh.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


OLD_DAMAGE: dict[str, Callable[[State], Any]] = {
    "tensor missing": lambda s: s.tensors.pop("a"),
    "moment missing": lambda s: s.tensors.pop("optimizer/exp_avg/a"),
    "tensor unknown": lambda s: s.tensors.update(b=torch.ones(1)),
    "other shape": lambda s: s.tensors.update(a=torch.ones(3, 2)),
    "other type": lambda s: s.tensors.update(a=torch.ones(2, 3, dtype=torch.float16)),
    "NaN": lambda s: s.tensors["a"].fill_(float("nan")),
    "infinite moment": lambda s: s.tensors["optimizer/exp_avg/a"].fill_(float("inf")),
    "negative square": lambda s: s.tensors["optimizer/exp_avg_sq/a"].fill_(-1.0),
    "step as text": lambda s: s.values.update(step="5"),
    "step below one": lambda s: s.values.update(step=0),
    "variants as text": lambda s: s.values.update(variants="many"),
    "indicator a number": lambda s: s.values.update(indicator=0.5),
    "indicator a list": lambda s: s.values.update(indicator=["average", "seen"]),
    "indicator empty": lambda s: s.values.update(indicator={}),
    "indicator of other bins": lambda s: s.values.update(indicator=OverfitIndicator(bins=3).state_dict()),
    "indicator NaN": lambda s: s.values["indicator"].update(average=[[float("nan")] * 2] * 2),
    "seen as numbers": lambda s: s.values["indicator"].update(seen=[1, 0]),
    "scaler unknown": lambda s: s.values.update(scaler={"scale": 1.0}),
}


@pytest.mark.parametrize("name", OLD_DAMAGE)
def test_a_state_without_checksum_is_checked_against_the_run(tmp_path: Path, name: str) -> None:
    state = a_state()
    OLD_DAMAGE[name](state)
    write_old_state(tmp_path, state)
    with pytest.raises(Damaged, match=r"state\.(json|safetensors)"):
        check_state(a_run(), read_state(tmp_path))


def test_a_state_without_checksum_is_still_read(tmp_path: Path) -> None:
    write_old_state(tmp_path, a_state())
    found = read_state(tmp_path)
    check_state(a_run(), found)
    written = {name: value for name, value in a_state().values.items() if name != "optimizer"}
    assert found.values == written and torch.equal(found.tensors["a"], a_state().tensors["a"])


def test_the_newest_state_that_can_be_used_is_found_and_why_no_newer_one(tmp_path: Path) -> None:
    for step in (3, 5, 8, 9):
        write_old_state(tmp_path / f"step_{step:06d}", a_state(step))
    (tmp_path / "step_000005" / "state.json").write_text("{")
    (tmp_path / "step_000008" / "state.json").unlink()
    write_old_state(tmp_path / "step_000009", a_state(4))  # a copy under another step's name
    state, faults = read_newest_state(tmp_path, a_run())
    assert state is not None and state.step == 3
    assert faults == [
        "step 9: state.json is of step 4", "step 8: state.json is missing", "step 5: state.json cannot be read",
    ]  # fmt: skip


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 16
    file.write_bytes(whole)


@pytest.mark.usefixtures("no_report")
def test_a_resume_falls_back_and_says_to_which_step_and_why(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    flip(folder / "snapshots" / "step_000004" / "state.safetensors")
    recorder = Recorder()
    run(steps=4, snapshot_every=2, output_dir=folder, resume=True, on_event=recorder, **QUICK)
    assert [event.step for event in recorder.steps] == [3, 4]
    told = "step 4: state.safetensors does not match its checksum), so the run goes on from step 2"
    assert told in notices(recorder)
    assert (folder / "log.jsonl").read_bytes() == (trained / "log.jsonl").read_bytes()
    for file in ("toy_subject.safetensors", "snapshots/step_000004/state.safetensors"):
        assert (folder / file).read_bytes() == (trained / file).read_bytes()
    assert (folder / "snapshots" / "step_000004_set_aside" / "toy_subject.safetensors").is_file()


@pytest.mark.usefixtures("no_report", "as_on_windows")
def test_a_resume_writes_a_damaged_lora_of_its_last_step_again(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    lora = folder / "snapshots" / "step_000004" / "toy_subject.safetensors"
    flip(lora)
    with pytest.raises(Damaged, match=r"toy_subject\.safetensors does not match its checksum"):
        check_kept(lora)
    run(steps=4, snapshot_every=2, output_dir=folder, resume=True, **QUICK)
    check_kept(lora)
    assert lora.read_bytes() == (trained / "snapshots" / "step_000004" / lora.name).read_bytes()


def test_a_checksum_counts_for_a_name_in_other_letters(trained: Path, tmp_path: Path) -> None:
    """On file systems that do not know them apart the same subject in other letters finds this run."""
    folder = shutil.copytree(trained / "snapshots" / "step_000004", tmp_path / "step_000004")
    check_kept((folder / "toy_subject.safetensors").rename(folder / "Toy_Subject.safetensors"))


def test_a_lora_of_an_earlier_version_is_checked_by_its_own_digest(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "snapshots" / "step_000004", tmp_path / "step_000004")
    (folder / "checksums.json").unlink()
    lora = folder / "toy_subject.safetensors"
    check_kept(lora)
    flip(lora)
    with pytest.raises(Damaged, match="checksum"):
        check_kept(lora)


def test_a_lora_without_checksums_may_be_in_any_number_format(tmp_path: Path) -> None:
    """Someone may have put a smaller copy in its place; torch has no `isfinite` for fp8."""
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        lora = tmp_path / "toy.safetensors"
        save_file({"a": torch.ones(2).to(dtype)}, lora)
        check_kept(lora)
        save_file({"a": torch.full((2,), float("nan")).to(dtype)}, lora)
        with pytest.raises(Damaged, match="values that training never has"):
            check_kept(lora)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "sha256": {}}', '{"format": 9, "sha256": {}}'])
def test_a_lora_whose_checksum_is_damaged_is_not_trusted(trained: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(trained / "snapshots" / "step_000004", tmp_path / "step_000004")
    (folder / "checksums.json").write_text(text)
    with pytest.raises(Damaged):
        check_kept(folder / "toy_subject.safetensors")


# -- what a user put there


def test_a_trained_run_whose_snapshots_were_deleted_is_not_trained_over(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(folder / "snapshots")
    log, lora = ((folder / name).read_bytes() for name in ("log.jsonl", "toy_subject.safetensors"))
    with pytest.raises(InputError, match="has a LoRA, but no snapshot to go on from: restore its snapshots"):
        run(steps=6, output_dir=folder, resume=True, **QUICK)
    assert (folder / "log.jsonl").read_bytes() == log and (folder / "toy_subject.safetensors").read_bytes() == lora


@pytest.mark.usefixtures("no_report", "as_on_windows")
def test_copied_snapshots_end_no_run_and_stay(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    place = folder / "snapshots"
    copies = ["step_000002 copy", "step_best", "step_5", "step_000004_old", "step_²", "step_0000006"]
    for name in copies:
        shutil.copytree(place / "step_000004", place / name)
    (place / "step_000006").write_text("mine")
    result = run(steps=7, snapshot_every=2, output_dir=folder, resume=True, **QUICK)
    assert result.steps_done == 7 and read_run(folder).snapshots == [2, 4, 6, 7]
    assert all((place / name / "state.safetensors").exists() for name in copies)
    assert (place / "step_000006_set_aside").read_text() == "mine"
    assert [(place / f"step_{at:06d}" / "state.json").exists() for at in (2, 4, 6, 7)] == [False, False, True, True]


def test_what_stands_in_a_snapshots_place_is_set_aside(tmp_path: Path) -> None:
    for _ in range(3):
        write_snapshot(tmp_path, a_state(), {})
    assert {path.name for path in tmp_path.iterdir()} == {
        "step_000005", "step_000005_set_aside", "step_000005_set_aside_2",
    }  # fmt: skip


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("how", ["deleted", "moved", "emptied"])
def test_a_folder_that_goes_while_training_is_completed_again(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"

    def spoil(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 3:
            folder.rename(tmp_path / "moved")
            if how == "deleted":
                shutil.rmtree(tmp_path / "moved")
            if how == "emptied":
                folder.mkdir()

    with pytest.raises(
        InputError, match="was deleted or moved while training.*continues with `apt-train resume [^ ]*run`.$"
    ):
        run(steps=6, snapshot_every=2, output_dir=folder, on_event=spoil, record={"inputs": "mine"}, **QUICK)
    assert read_config(folder).content["inputs"] == "mine" and len(read_log(folder / "log.jsonl").lines) == 4
    resumed = run(steps=6, snapshot_every=2, output_dir=folder, resume=True, **QUICK)
    assert same_weights(resumed, run(steps=6, **QUICK)) and len(resumed.losses) == 6


@pytest.mark.usefixtures("no_report")
def test_the_command_line_is_offered_only_for_runs_that_it_began(tmp_path: Path) -> None:
    """It refuses the others, as it does not know their inputs."""

    def spoil(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 3:
            shutil.rmtree(tmp_path / "theirs")

    with pytest.raises(InputError, match="is saved there again, and can be resumed where it was started"):
        run(steps=6, snapshot_every=2, output_dir=tmp_path / "theirs", on_event=spoil, **QUICK)
    run(steps=2, output_dir=tmp_path / "ours", record={"inputs": {}}, **QUICK)
    for name, words in (("theirs", "or resume it where it was started"), ("ours", "or go on with `apt-train resume")):
        with pytest.raises(InputError, match=f"already holds a run: choose another output folder, {words}"):
            run(steps=6, output_dir=tmp_path / name, **QUICK)


@pytest.mark.usefixtures("no_report")
def test_a_config_or_a_log_that_goes_while_training_is_written_again(tmp_path: Path) -> None:
    def spoil(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step in (2, 3):
            (tmp_path / ("config.json" if event.step == 2 else "log.jsonl")).unlink()

    run(steps=4, output_dir=tmp_path, on_event=spoil, **QUICK)
    assert read_config(tmp_path).content["config"]["steps"] == 4 and len(read_log(tmp_path / "log.jsonl").lines) == 4


@pytest.mark.parametrize(
    "name", ["previews", "snapshots", "log.jsonl", "toy_subject.safetensors", "attention.safetensors", "report.md"]
)
def test_a_file_in_a_folders_place_or_the_reverse_is_one_sentence(trained: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    place = folder / name
    is_folder = place.is_dir() or name == "previews"
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    place.write_text("") if is_folder else place.mkdir()
    with pytest.raises(InputError, match=f"{name} is a (file|folder), where a run has a (file|folder): move it away"):
        run(steps=5, output_dir=folder, resume=True, **QUICK)


@pytest.mark.usefixtures("no_report")
def test_previews_that_cannot_be_saved_do_not_end_the_run(tmp_path: Path) -> None:
    def spoil(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 1:
            (tmp_path / "previews").write_text("")

    recorder = Recorder()

    def both(event: Any) -> None:
        spoil(event)
        recorder(event)

    assert run(steps=2, preview_every=1, output_dir=tmp_path, on_event=both, **QUICK).steps_done == 2
    assert "previews is a file" in notices(recorder)


# -- locks


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file system without locks, as some network ones are."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    yield


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / names.LOCK).symlink_to("mine")
    with pytest.raises(InputError, match=r"\.lock is a link: delete it"), lock.held(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.usefixtures("no_locks")
def test_without_locks_two_processes_still_do_not_train_together(tmp_path: Path) -> None:
    with (
        lock.held(tmp_path),
        pytest.raises(InputError, match=f"by another process .{os.getpid()} on "),
        lock.held(tmp_path),
    ):
        pass
    with lock.held(tmp_path):
        pass
    assert not (tmp_path / names.LOCK_WITHOUT_SYSTEM).exists()


def take_over(folder: Path, pid: int) -> None:
    """Hold a folder in which this process left its lock."""
    place = folder / names.LOCK_WITHOUT_SYSTEM
    place.write_text(json.dumps({"host": lock._host(), "pid": pid, "token": "x"}))
    with lock.held(folder):
        assert json.loads(place.read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_process_that_ended_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    take_over(tmp_path, child.pid)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_process_that_awaits_its_parent_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS tells no status of such a process; psutil then says that it is a zombie."""

    def ended(pid: int) -> None:
        raise psutil.ZombieProcess(pid)

    monkeypatch.setattr(psutil, "Process", ended)
    take_over(tmp_path, os.getppid())


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_process_that_is_not_listed_still_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `hidepid`, /proc lists no process of another user; psutil then says that there is none."""

    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", hidden)
    with lock.held(tmp_path), pytest.raises(InputError, match="by another process"), lock.held(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("text", ['{"host": "elsewhere", "pid": 1}', "", "[]", '{"host": 1, "pid": true}'])
def test_without_locks_one_who_cannot_be_asked_after_is_told_with_a_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / names.LOCK_WITHOUT_SYSTEM).write_text(text)
    with pytest.raises(InputError, match=r"or delete \.lock\.json there if it has ended"), lock.held(tmp_path):
        pass


def test_settings_of_this_version_read_back(trained: Path) -> None:
    """The config of a run is its own: what was trained with stands there."""
    assert dataclasses.asdict(read_config(trained).settings)["steps"] == 4

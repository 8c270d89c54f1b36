"""What a resumed run finds and puts right: previews and drift that are still due, litter, links out of its folder.

Not here: that it trains the same bits (`test_train`), and what real kills leave (`test_kill`).
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apt_train.disk import files
from apt_train.errors import InputError
from apt_train.events import BusyEvent, Event, NoticeEvent, StepEvent, StopTraining
from apt_train.run import folder
from apt_train.run.preview_files import png_text, read_preview
from tests.training import Recorder, run

pytestmark = pytest.mark.usefixtures("as_on_windows")
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "snapshot_every": 2,
    "preview_every": 2,
    "preview_prompts": ("a {subject} on grass", "a dog"),
    "drift_prompts": ("a dog",),
}


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "log.jsonl", *folder.rglob("step_*.png")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(output_dir=folder, **SETTINGS)
    assert sum("drift" in json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()) == 2
    assert len(contents(folder)) == 1 + 2 * 4
    return contents(folder)


class StopIn:
    """Stops the run at the first call of the UNet for drift or previews at a step."""

    def __init__(self, what: str, step: int) -> None:
        self._what, self._step = what, step

    def __call__(self, event: Event) -> None:
        if isinstance(event, BusyEvent) and (event.what, event.step) == (self._what, self._step):
            raise StopTraining


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("what", ["drift", "previews"])
def test_what_was_broken_off_is_there_after_a_resume(
    what: str, step: int, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    assert run(output_dir=tmp_path, on_event=StopIn(what, step), **SETTINGS).stopped
    assert contents(tmp_path) != unbroken
    recorder = Recorder()
    run(output_dir=tmp_path, resume=True, on_event=recorder, **SETTINGS)
    assert contents(tmp_path) == unbroken
    assert [event.step for event in recorder.steps] == list(range(step + 1, 5)), "nothing is trained again"


@pytest.mark.usefixtures("no_report")
def test_what_is_broken_off_twice_is_there_after_the_second_resume(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    run(output_dir=tmp_path, on_event=StopIn("drift", 2), **SETTINGS)
    run(output_dir=tmp_path, on_event=StopIn("drift", 2), resume=True, **SETTINGS)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step_000002"]
    run(output_dir=tmp_path, resume=True, **SETTINGS)
    assert contents(tmp_path) == unbroken


@pytest.mark.usefixtures("no_report")
def test_a_preview_that_lacks_one_picture_is_drawn_again_and_a_complete_one_is_not(tmp_path: Path) -> None:
    run(output_dir=tmp_path, **SETTINGS)
    lost = tmp_path / "previews" / "step_000004_1_tuned.png"
    whole = lost.read_bytes()
    lost.unlink()
    first, second = Recorder(), Recorder()
    run(output_dir=tmp_path, resume=True, on_event=first, **SETTINGS)
    run(output_dir=tmp_path, resume=True, on_event=second, **SETTINGS)
    assert lost.read_bytes() == whole
    drawn = [
        [event for event in events if isinstance(event, BusyEvent) and event.what == "previews"]
        for events in (first.events, second.events)
    ]
    assert drawn[0] and not drawn[1]


@pytest.mark.usefixtures("no_report")
def test_previews_of_steps_that_are_lost_go_and_the_users_own_files_stay(tmp_path: Path) -> None:
    run(output_dir=tmp_path, **{**SETTINGS, "steps": 2})
    kept = {"step_000002_0_tuned.png", "step_000009_0_tuned copy.png", "best.png", "step_000009.txt"}
    for name in (*kept, "step_000003_0_tuned.png", "step_1000000_12_prior.png"):
        (tmp_path / "previews" / name).touch()
    run(output_dir=tmp_path, resume=True, **{**SETTINGS, "steps": 2})
    left = set(os.listdir(tmp_path / "previews"))
    assert kept <= left and "step_000003_0_tuned.png" not in left and "step_1000000_12_prior.png" not in left


@pytest.mark.usefixtures("no_report")
def test_a_state_whose_removal_was_broken_off_goes(tmp_path: Path) -> None:
    run(steps=3, snapshot_every=1, output_dir=tmp_path)
    left = tmp_path / "snapshots" / "step_000001" / "state.safetensors"
    left.write_bytes(b"half removed")
    run(steps=3, snapshot_every=1, output_dir=tmp_path, resume=True)
    assert not left.exists() and len(list(tmp_path.rglob("state.safetensors"))) == 2


# -- litter and links


def test_what_killed_writers_left_goes_when_the_run_is_opened_for_training(tmp_path: Path) -> None:
    run(output_dir=tmp_path / "run", **SETTINGS)
    (tmp_path / "elsewhere").mkdir()
    drafts = [folder / f".{'a' * digits}.tmp" for folder in _folders(tmp_path / "run") for digits in (16, 32)]
    for draft in (*drafts, tmp_path / "elsewhere" / drafts[0].name):
        draft.mkdir()
        (draft / "state.safetensors").write_text("half")
    (tmp_path / "run" / ".mine.tmp").touch()
    run(output_dir=tmp_path / "run", resume=True, **SETTINGS)
    assert [path for path in drafts if path.exists()] == []
    assert (tmp_path / "run" / ".mine.tmp").exists() and len(os.listdir(tmp_path / "elsewhere")) == 1


def _folders(run_folder: Path) -> list[Path]:
    return [run_folder, run_folder / "snapshots", run_folder / "previews"]


def test_litter_does_not_keep_a_new_run_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / f".{'a' * 16}.tmp").write_text("half a config")
    run(steps=1, output_dir=tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_nothing_is_written_or_removed_through_links_out_of_the_folder(tmp_path: Path) -> None:
    """A folder that came from elsewhere: its files and folders lead to the user's own."""
    folder, mine = tmp_path / "run", tmp_path / "mine"
    run(output_dir=folder, **SETTINGS)
    mine.mkdir()
    for name in (f".{'a' * 16}.tmp", "step_000009_0_tuned.png", "state.json", "state.safetensors", "a.safetensors"):
        (mine / name).write_text("the user's")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    linked = [path for path in folder.iterdir() if path.is_file() and path.name not in (".lock", "config.json")]
    for path in linked:
        if path.name != "log.jsonl":
            path.unlink()
            path.symlink_to(mine / "a.safetensors")
    log = tmp_path / "log.jsonl"
    (folder / "log.jsonl").rename(log)
    (folder / "log.jsonl").symlink_to(log)
    logged = log.read_bytes()
    (folder / "previews").rename(tmp_path / "old previews")
    (folder / "previews").symlink_to(mine, target_is_directory=True)
    (folder / "snapshots" / "step_000007").symlink_to(mine, target_is_directory=True)
    result = run(output_dir=folder, resume=True, **{**SETTINGS, "steps": 7})
    assert result.steps_done == 7 and result.report == folder / "report.md"
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before and log.read_bytes() == logged
    assert [path.name for path in folder.rglob("*") if path.is_symlink()] == ["step_000007_set_aside"]


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_snapshots_elsewhere_are_refused_and_left_alone(tmp_path: Path) -> None:
    run(output_dir=tmp_path / "run", steps=2)
    (tmp_path / "run" / "snapshots").rename(tmp_path / "mine")
    (tmp_path / "run" / "snapshots").symlink_to(tmp_path / "mine", target_is_directory=True)
    with pytest.raises(InputError, match="snapshots is a link: put the folder itself"):
        run(output_dir=tmp_path / "run", steps=3, resume=True)
    assert os.listdir(tmp_path / "mine") == ["step_000002"]


def test_a_file_named_previews_costs_the_previews_alone(tmp_path: Path) -> None:
    def put_a_file(event: Event) -> None:
        if isinstance(event, StepEvent):
            (tmp_path / "previews").touch()
        recorder(event)

    recorder = Recorder()
    result = run(output_dir=tmp_path, on_event=put_a_file, **SETTINGS)
    assert result.steps_done == 4 and (tmp_path / "previews").is_file()
    told = [event.text for event in recorder.events if isinstance(event, NoticeEvent)]
    assert len([text for text in told if "previews is a file" in text]) == 1


@pytest.mark.parametrize("name", ["snapshots", "log.jsonl"])
def test_what_takes_nothing_is_refused_before_anything_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first snapshot, when the steps to it cannot be saved."""
    run(steps=1, output_dir=tmp_path, watch_drift=False)
    real = {"snapshots": files._create, "log.jsonl": folder.append}[name]

    def refuse(path: Path, *more: Any) -> Any:
        if name in (path.name, path.parent.name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *more)

    monkeypatch.setattr(*((files, "_create") if name == "snapshots" else (folder, "append")), refuse)
    recorder = Recorder()
    with pytest.raises(InputError, match=f"{name}.*(permission|not writable)"):
        run(steps=2, output_dir=tmp_path, watch_drift=False, resume=True, on_event=recorder)
    assert recorder.steps == []


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_takes_no_previews_costs_the_previews_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files._create

    def refuse(path: Path) -> int:
        if path.parent.name == "previews":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(files, "_create", refuse)
    result = run(steps=2, preview_every=1, output_dir=tmp_path, watch_drift=False)
    assert result.steps_done == 2 and (tmp_path / "snapshots" / "step_000002").is_dir()
    assert any(text.startswith("The previews failed (step_000001_0_prior.png could not be") for text in result.notices)


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
def test_a_pipe_in_a_previews_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step_000002_0_tuned.png")
    with pytest.raises(ValueError, match="it is not a file"):
        read_preview(tmp_path / "step_000002_0_tuned.png")
    assert png_text(tmp_path / "step_000002_0_tuned.png", "prompt") is None


def test_a_report_that_failed_is_not_named(tmp_path: Path) -> None:
    assert run(output_dir=tmp_path, steps=1).report == tmp_path / "report.md"
    told: list[str] = []

    def spoil(event: Event) -> None:
        if isinstance(event, StepEvent):
            (tmp_path / "report.md").unlink()
            (tmp_path / "report.md").mkdir()
        if isinstance(event, NoticeEvent):
            told.append(event.text)

    result = run(output_dir=tmp_path, steps=2, resume=True, on_event=spoil)
    assert result.steps_done == 2 and result.report is None
    (told_last,) = told
    assert told_last.startswith("The LoRA is written, but the report failed (report.md could not be written")

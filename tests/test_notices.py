"""What a user was told stays: in the run's folder, in the report, in the result; each sentence once, also resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_train.data.dataset import ImageSet
from apt_train.events import Event, NoticeEvent, StepEvent, StopTraining
from apt_train.report import write_report
from apt_train.run.notices import LONGEST, MOST, NOTICES, Notices, read_notices
from apt_train.sample.drift import DriftWatch
from tests.synthetic_run import plausible_log, write_run
from tests.training import Recorder, run

SAME = "picture 1 and picture 2 are the same picture"
DRIFT = "The drift from the prior could not be measured"


def alike() -> ImageSet:
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    return ImageSet.from_tensors([picture, picture])


def told(recorder: Recorder) -> list[str]:
    return [event.text for event in recorder.events if isinstance(event, NoticeEvent)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / NOTICES).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def without_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DriftWatch, "measure", fail)


@pytest.mark.usefixtures("without_drift")
def test_what_was_told_stands_in_folder_report_and_result(tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(images=alike(), steps=2, snapshot_every=2, output_dir=tmp_path, on_event=recorder)
    assert [text.partition(",")[0].partition(" (")[0] for text in result.notices] == [SAME, DRIFT]
    assert result.notices == told(recorder)
    assert lines(tmp_path) == [{"step": step, "text": text} for step, text in zip((0, 2), result.notices, strict=True)]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Notices" in report and f"- {SAME}" in report and "training goes on without it. (step 2)" in report
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["notices"] == lines(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in log] == [1, 2] and "text" not in log[0]


@pytest.mark.usefixtures("without_drift", "no_report")
def test_a_resumed_run_keeps_each_notice_once_and_tells_the_pictures_own_no_more(tmp_path: Path) -> None:
    settings = {"images": alike(), "snapshot_every": 2, "output_dir": tmp_path}
    first = run(steps=2, **settings)
    recorder = Recorder()
    second = run(steps=4, resume=True, on_event=recorder, **settings)
    assert [text[: len(DRIFT)] for text in told(recorder)] == [DRIFT], "what fails again is told again"
    assert second.notices == first.notices == [line["text"] for line in lines(tmp_path)]
    third = run(steps=5, resume=True, **{**settings, "snapshot_every": 0, "drift_prompts": ("a dog",)})
    assert third.notices[:2] == first.notices and "dropped" in third.notices[2] and len(lines(tmp_path)) == 3


def test_nothing_to_tell_leaves_no_file_and_no_section(tmp_path: Path) -> None:
    assert run(steps=1, output_dir=tmp_path).notices == []
    assert not (tmp_path / NOTICES).exists()
    assert "Notices" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["notices"] == []


@pytest.mark.usefixtures("no_report")
def test_a_run_without_a_step_leaves_none_and_its_folder_is_taken_again(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, NoticeEvent):
            raise StopTraining

    stopped = run(images=alike(), output_dir=tmp_path, on_event=stop)
    assert stopped.steps_done == 0 and len(stopped.notices) == 1 and not (tmp_path / NOTICES).exists()
    assert run(images=alike(), steps=1, output_dir=tmp_path).notices == stopped.notices


@pytest.mark.usefixtures("no_report")
def test_a_run_cancelled_at_its_first_step_has_them_all(tmp_path: Path) -> None:
    def cancel(event: Event) -> None:
        if isinstance(event, StepEvent):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(images=alike(), output_dir=tmp_path, on_event=cancel)
    assert len(lines(tmp_path)) == 1


def test_without_a_folder_the_result_has_them() -> None:
    assert len(run(images=alike(), steps=1).notices) == 1


def test_a_place_that_takes_no_notices_ends_no_run(tmp_path: Path) -> None:
    notices = Notices()
    notices.add("one", 0)
    (tmp_path / NOTICES).mkdir()
    notices.write(tmp_path)
    assert notices.texts == ["one"] and read_notices(tmp_path) == []
    (tmp_path / NOTICES).rmdir()
    notices.add("two", 3)
    notices.write(tmp_path)
    notices.write(tmp_path)
    assert read_notices(tmp_path) == [NoticeEvent("one", 0), NoticeEvent("two", 3)]


GOOD = b'{"step": 1, "text": "good"}\n'


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"step": 1, "text": "cut', b"[1]\n", b'{"text": 5}\n', b"\xff\xfe\n", b"null\n", b"[" * 100_000,
     b'{"step": 2, "text": " "}\n', b"\n\n"],
)  # fmt: skip
def test_a_damaged_line_costs_that_line_alone(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NOTICES).write_bytes(GOOD + damage)
    notices = Notices(read_notices(tmp_path))
    notices.add("good", 7)
    notices.add("another", 9)
    notices.write(tmp_path)
    assert read_notices(tmp_path) == [NoticeEvent("good", 1), NoticeEvent("another", 9)]


def test_half_a_character_is_read_as_one_that_can_be_written(tmp_path: Path) -> None:
    """The report writes it, which the damage of one line may not keep from being written."""
    (tmp_path / NOTICES).write_text('{"step": 1, "text": "a \\ud800 b"}\n')
    (found,) = read_notices(tmp_path)
    assert found.text == "a ? b" and found.text.encode()


STRANGE: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("other"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a pipe": lambda path: os.mkfifo(path),
    "a terabyte": lambda path: (path.write_bytes(GOOD), os.truncate(path, 1 << 40)),
}


@pytest.mark.skipif(os.name == "nt", reason="no pipes, no holes in files")
@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_file_of_ours_makes_way(tmp_path: Path, strange: str) -> None:
    (tmp_path / "other").write_bytes(GOOD)
    STRANGE[strange](tmp_path / NOTICES)
    notices = Notices(read_notices(tmp_path))
    kept = notices.texts
    notices.add("another", 9)
    notices.write(tmp_path)
    assert [notice.text for notice in read_notices(tmp_path)] == [*kept, "another"]
    assert (tmp_path / "other").read_bytes() == GOOD and not (tmp_path / "nothing").exists()
    assert not (tmp_path / NOTICES).is_symlink() and (tmp_path / NOTICES).stat().st_size < 1000


def test_a_folder_of_that_name_costs_the_notices_alone(tmp_path: Path) -> None:
    (tmp_path / NOTICES).mkdir()
    notices = Notices(read_notices(tmp_path))
    notices.add("one", 1)
    notices.write(tmp_path)
    assert notices.texts == ["one"] and not list((tmp_path / NOTICES).iterdir())


def test_a_file_without_end_is_read_in_part(tmp_path: Path) -> None:
    many = [{"step": -3 if k % 2 else "x", "text": f"{k} " + "long " * 1000} for k in range(MOST + 5)]
    (tmp_path / NOTICES).write_text("\n".join(map(json.dumps, many)), encoding="utf-8")
    found = read_notices(tmp_path)
    assert len(found) == MOST and {notice.step for notice in found} == {0}
    assert max(len(notice.text) for notice in found) == LONGEST


def test_a_run_keeps_no_more_notices_than_are_read() -> None:
    notices = Notices()
    for number in range(MOST + 5):
        notices.add(str(number), 0)
    assert notices.texts == [str(number) for number in range(MOST)]


def test_a_file_name_is_no_markdown(tmp_path: Path) -> None:
    write_run(tmp_path, plausible_log(3))
    (tmp_path / NOTICES).write_text(json.dumps({"step": 0, "text": "![x](http://y)\n# <b>`z`"}) + "\n")
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert r"- !\[x\](http://y) # \<b\>\`z\`" in report

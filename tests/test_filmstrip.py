"""Samples over the snapshots on one sheet: what is on it, what is left out, and that it costs the training nothing."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apt_train.config import OutputConfig, TrainConfig
from apt_train.events import PreviewEvent, StepEvent
from apt_train.report import write_report
from apt_train.report.filmstrip import MOST, TILE, draw_filmstrip, picked, prompt_label, write_filmstrip
from apt_train.run.preview_files import read_preview, save_previews

from .synthetic_run import plausible_log, write_run
from .training import Recorder, run, same_weights

GREEN, RED, BLUE = (0, 200, 0), (200, 0, 0), (0, 0, 200)


def config(*prompts: str, unseen: str = "") -> TrainConfig:
    return TrainConfig(class_word="toy", output=OutputConfig(preview_prompts=prompts, unseen_prompt=unseen))


def keep(folder: Path, step: int, prompts: list[str], tuned: tuple[int, int, int] = GREEN) -> None:
    """Samples of a step: the prior's red, the tuned model's of a colour."""
    prior, after = ([Image.new("RGB", (64, 64), colour) for _ in prompts] for colour in (RED, tuned))
    save_previews(folder / "previews", step, prompts, prior=prior, tuned=after)


def count(sheet: Image.Image | None, colour: tuple[int, int, int]) -> float:
    """How many tiles of a colour there are."""
    assert sheet is not None
    pixels = dict((value, number) for number, value in sheet.getcolors(1 << 24) or [])
    return pixels.get(colour, 0) / TILE**2


def test_a_row_per_prompt_the_prior_first_then_every_snapshot(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        keep(tmp_path, step, ["a {subject}", "a dog"])
    sheet = draw_filmstrip(tmp_path, config("a {subject}", "a dog"))
    assert (count(sheet, RED), count(sheet, GREEN)) == (2, 6)
    assert sheet is not None and sheet.width > 4 * TILE and sheet.height > 2 * TILE


def test_samples_of_other_prompts_and_those_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    keep(tmp_path, 10, ["a {subject} in snow"], BLUE)
    keep(tmp_path, 20, ["a {subject}"])
    (tmp_path / "previews" / "step_000030_0_tuned.png").write_bytes(b"\x89PNG cut")
    Image.new("RGB", (64, 64), GREEN).save(tmp_path / "previews" / "step_000040_0_tuned.png")  # of an older version
    sheet = draw_filmstrip(tmp_path, config("a {subject}"))
    assert (count(sheet, RED), count(sheet, GREEN), count(sheet, BLUE)) == (1, 2, 0)
    assert draw_filmstrip(tmp_path / "elsewhere", config()) is None
    assert draw_filmstrip(tmp_path, config("a cat")) is not None, "the one that does not say stays"


def bomb(side: int = 60_000) -> bytes:
    """A PNG's head and the first of its pixels; by default of more than Pillow opens."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b""))
    parts = (struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp() -> bytes:
    Image.new("RGB", (64, 64), BLUE).save(file := BytesIO(), format="BMP")
    return file.getvalue()


def test_a_large_picture_in_a_previews_place_is_left_out_without_a_warning(tmp_path: Path) -> None:
    """Pillow would warn of it on the terminal, in words for programmers."""
    (tmp_path / "large.png").write_bytes(bomb(10_000))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="too large"):
            read_preview(tmp_path / "large.png")
    assert not told


NO_PREVIEWS = {
    "more pixels than Pillow opens": bomb(),
    "another kind of picture": bmp(),  # of some Pillow would start a program
}


@pytest.mark.parametrize("what", NO_PREVIEWS)
def test_what_is_no_sample_is_left_out_and_nothing_is_said(what: str, tmp_path: Path) -> None:
    keep(tmp_path, 10, ["a {subject}"])
    (tmp_path / "previews" / "step_000020_0_tuned.png").write_bytes(NO_PREVIEWS[what])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = draw_filmstrip(tmp_path, config("a {subject}"))
    assert (count(sheet, GREEN), count(sheet, BLUE)) == (1, 0)


def test_a_picture_that_is_too_large_for_a_sample_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 10, ["a {subject}"])
    monkeypatch.setattr("apt_train.run.preview_files.MOST_PIXELS", 64 * 64 - 1)
    assert draw_filmstrip(tmp_path, config("a {subject}")) is None


def test_of_many_snapshots_some_are_shown_and_always_the_last() -> None:
    steps = list(range(10, 1010, 10))
    assert len(picked(steps)) == MOST and picked(steps)[0] == 10 and picked(steps)[-1] == 1000
    assert picked([5]) == [5] and picked([]) == []


def test_the_unseen_prompt_comes_last_and_is_marked() -> None:
    drawn = config("a {subject}", "a dog", unseen="auto")
    assert drawn.sampled_prompts == ("a {subject}", "a dog", "a watercolor painting of {subject} on the moon")
    assert [prompt_label(drawn, prompt) for prompt in drawn.sampled_prompts] == [
        "a {subject}", "a dog", f"unseen: {drawn.unseen_prompt}"
    ]  # fmt: skip
    assert TrainConfig(class_word="toy").sampled_prompts[0] == "a photo of {subject}"
    plain = config("a {subject}")
    assert plain.sampled_prompts == ("a {subject}",) and prompt_label(plain, "") == ""


def test_a_sample_says_which_prompt_it_shows(tmp_path: Path) -> None:
    keep(tmp_path, 10, ["喷 {subject}"])
    picture, prompt = read_preview(tmp_path / "previews" / "step_000010_0_tuned.png")
    assert prompt == "喷 {subject}" and picture.size == (64, 64)


@pytest.mark.usefixtures("no_report")
def test_samples_and_filmstrip_change_no_weight_and_come_while_it_trains(tmp_path: Path) -> None:
    recorder = Recorder()
    watched = {"preview_every": 2, "preview_prompts": ("a {subject}",), "unseen_prompt": "auto", "preview_steps": 1}
    with_samples = run(**watched, output_dir=tmp_path, on_event=recorder)
    assert same_weights(run(), with_samples)
    events = [event for event in recorder.events if isinstance(event, PreviewEvent)]
    assert [event.step for event in events] == [2, 4] and all(event.unseen and event.seconds > 0 for event in events)
    assert [len(event.tuned) for event in events] == [2, 2]
    assert len(list((tmp_path / "previews").iterdir())) == 8 and (tmp_path / "filmstrip.png").is_file()
    with Image.open(tmp_path / "filmstrip.png") as sheet:
        assert sheet.width > 3 * TILE


@pytest.mark.usefixtures("no_report")
def test_a_run_trains_on_where_the_sheet_cannot_be_written(tmp_path: Path) -> None:
    """Windows refuses while another program shows the file; here a folder lies in its place."""

    def take(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 1:
            (tmp_path / "filmstrip.png").mkdir()

    result = run(preview_every=2, preview_steps=1, watch_drift=False, output_dir=tmp_path, on_event=take)
    assert result.steps_done == 4 and not result.notices
    assert len(list((tmp_path / "previews").iterdir())) == 4


def test_the_report_shows_it_and_drops_it_where_no_sample_is_left(tmp_path: Path) -> None:
    write_run(tmp_path, plausible_log(60))
    keep(tmp_path, 50, ["a photo of {subject}", "a watercolor painting of {subject} on the moon"])
    assert "![filmstrip.png](filmstrip.png)" in write_report(tmp_path).read_text(encoding="utf-8")
    drawn = (tmp_path / "filmstrip.png").read_bytes()
    write_filmstrip(tmp_path, TrainConfig(class_word="toy"))
    assert (tmp_path / "filmstrip.png").read_bytes() == drawn
    for path in (tmp_path / "previews").iterdir():
        path.unlink()
    assert "filmstrip" not in write_report(tmp_path).read_text(encoding="utf-8")
    assert not (tmp_path / "filmstrip.png").exists()

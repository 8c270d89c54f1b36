"""What comes from the server in the editor's language: the usual mistakes and the node's line of text.

Not here: what the editor and its scripts translate (`test_node_texts`), nor that the host shows it (`tests/host`).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest

from apt_train.config import AdapterConfig, AptConfig, DataConfig, OptimizerConfig, OutputConfig, TrainConfig
from apt_train.data.buckets import bucket_notes, prepare
from apt_train.data.dataset import ImageSet
from apt_train.data.pictures import parse_color
from apt_train.errors import InputError
from apt_train.events import BusyEvent, PlanEvent, Work
from apt_train.text.captions import caption_for
from apt_train.training.notes import OF_PRIOR
from apt_train.wording import counted, duration

from .node_modules import ROOT, node_module

CHINESE = re.compile(r"[\u4e00-\u9fff]")
TABLE: dict[str, str] = json.loads((ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))["aptTrain"]["server"]


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, on a host whose users' folder is this test's."""
    folders: Any = ModuleType("folder_paths")
    folders.get_user_directory = lambda: str(tmp_path)
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    with node_module("host.language") as module:
        yield module


def set_language(folder: Path, text: str) -> None:
    (folder / "default").mkdir(exist_ok=True)
    (folder / "default" / "comfy.settings.json").write_text(text, encoding="utf-8")


def speak(folder: Path, locale: object) -> None:
    set_language(folder, json.dumps({"Comfy.Locale": locale}))


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"class_word": "toy", **changes})


MISTAKES: dict[str, Callable[[], object]] = {
    "class word": lambda: config(class_word=" "),
    "no file name": lambda: config(class_word="caf\u00e9"),
    "a name": lambda: config(identifier="a/b"),
    "a placeholder": lambda: config(class_word="{subject}"),
    "template": lambda: DataConfig(caption_template="a photo"),
    "warmup": lambda: OptimizerConfig(warmup_steps=3),
    "min_rank": lambda: AdapterConfig(rank=2, min_rank=3),
    "DCO": lambda: config(method="dco", apt=AptConfig(lazy_prior=2)),
    "drift": lambda: OutputConfig(drift_prompts=("{subject}",)),
    "learning rate": lambda: OptimizerConfig(learning_rate=0.0),
    "least": lambda: OptimizerConfig(max_grad_norm=-1.0),
    "whole": lambda: config(steps=0),
    "choice": lambda: config(precision="int8"),
    "caption": lambda: caption_for("a lamp", "picture 1", template="{subject}", name="x", class_word="toy"),
    "captions": lambda: ImageSet.from_tensors([_grey()] * 2, ["a", "b", "c"]),
    "background": lambda: parse_color("sky"),
}


def _grey() -> Any:
    import torch

    return torch.zeros(8, 8, 3)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=list(MISTAKES))
def test_usual_mistakes_are_told_in_chinese(language: Any, tmp_path: Path, mistake: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        mistake()
    english = str(caught.value).replace("identifier is", "subject is", 1)
    assert language.translated(english) == english
    speak(tmp_path, "zh")
    told = language.translated(english)
    assert CHINESE.search(told) and told.endswith("\u3002") and not re.search(r"\{\d\}| is ", told), told


def _notices() -> list[str]:
    """Of pictures as a node gets them: the same twice, small, long, of two sizes, with one caption for all."""
    import torch

    alike = [torch.zeros(64, 64, 3)] * 2
    long = [torch.zeros(64, 512, 3), torch.ones(64, 64, 3)]
    images = ImageSet.from_tensors([*alike, *long], "a toy")
    several = ImageSet.from_tensors([torch.full((8, 8, 3), shade / 20) for shade in range(20) for _ in range(2)])
    return [*images.notes, *images.repeats(), *bucket_notes(prepare(images, 128, 64), 2), several.repeats()[-1]]


def test_notices_and_what_else_a_line_says_are_told_in_chinese(language: Any, tmp_path: Path) -> None:
    speak(tmp_path, "zh")
    works = [BusyEvent(what, 3).text for what in get_args(Work)]
    works += [BusyEvent(what, 3, 1, 8).text for what in ("pictures", "variants", "drift", "previews")]
    planned = PlanEvent(9, "cpu", "fp32", 3, 1, 64, True, memory=2, free=3).text
    works.append(PlanEvent(9, "cuda", "bf16", 3, 1, 64, True, parts=(1, 3)).text)
    works += [planned, PlanEvent(9, "cpu", "fp32", 3, 1, 64, False, memory=2).text]
    works.append(PlanEvent(1, "cpu", "fp32", 1, 1, 64, False).text)
    counts = [counted(count, "notice") for count in (1, 2)]
    times = [duration(seconds) for seconds in (40, 700, 12_000)]
    left = [f"{time} left" for time in times] + [f"samples took {time}" for time in times]
    works += [PlanEvent(9, "cuda", "bf16", 3, 1, 64, False, seconds=seconds).text for seconds in (40, 700, 12_000)]
    told = {english: language.translated_line(english) for english in (*_notices(), *works, *counts, *left)}
    assert len(_notices()) == 6
    assert not [english for english, shown in told.items() if not CHINESE.search(shown)], told
    assert not [shown for shown in told.values() if re.search(r"\b(min|of|left|is|are|so)\b|\{\d\}", shown)], told


def test_a_notice_on_prior_images_is_told_in_chinese_throughout(language: Any, tmp_path: Path) -> None:
    speak(tmp_path, "zh")
    for notice in _notices():
        assert language.translated(OF_PRIOR + notice) == f"先验图片：{language.translated(notice)}"


def test_a_long_sentence_does_not_hold_anything_up(language: Any, tmp_path: Path) -> None:
    speak(tmp_path, "zh")
    said = "x is y: z ({1}) " * 20_000
    assert language.translated(said) == language.translated_line(said) == said
    began = time.process_time()
    language.translated(said[: language.LONGEST])
    assert time.process_time() - began < 2


def test_a_line_is_translated_part_by_part(language: Any, tmp_path: Path) -> None:
    line = "step 3 of 9 \u00b7 loss 0.5 \u00b7 something new \u00b7 12 min left"
    assert language.translated_line(line) == line
    speak(tmp_path, "zh")
    told = language.translated_line(line).split(" \u00b7 ")
    assert told[2] == "something new" and all(CHINESE.search(told[part]) for part in (0, 1, 3))
    assert "3 / 9" in told[0] and "0.5" in told[1]


@pytest.mark.parametrize("locale", ["en", "fr", "../zh", "zh/../zh", "", 3, None, ["zh"]])
def test_another_language_is_english(language: Any, tmp_path: Path, locale: object) -> None:
    speak(tmp_path, locale)
    assert language.translated("getting ready") == "getting ready"


@pytest.mark.parametrize("chosen", ["{}", '{"Comfy.Locale": null}', '{"Comfy.Locale": ""}', "{"])
def test_where_no_language_was_chosen_the_pages_own_counts(language: Any, tmp_path: Path, chosen: str) -> None:
    set_language(tmp_path, chosen)
    for said in (b"zh", b"../..", b"\xff", b""):
        language.note_page_language(said)  # what is no language changes nothing
        assert language.translated("getting ready") == TABLE["getting ready"]
    speak(tmp_path, "en")
    assert language.translated("getting ready") == "getting ready"


@pytest.mark.parametrize(("several", "wanted"), [(True, {"ann": "en", "zhang": "zh"}), (False, {})])
def test_with_several_users_each_page_is_spoken_to_in_its_own_language(
    language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool, wanted: dict[str, str]
) -> None:
    """The default user's settings count where there is no other user."""
    arguments: Any = ModuleType("comfy.cli_args")
    arguments.args = SimpleNamespace(multi_user=several)
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.cli_args", arguments)
    queued: list[Callable[[dict[str, Any]], object]] = []
    server = SimpleNamespace(client_id=None, add_on_prompt_handler=queued.append)
    language.tell_users_apart(server)
    for client, spoken in (("zhang", b"zh"), ("ann", b"en")):
        language.note_page_language(spoken, client)
    default = "en" if several else "zh"
    for chosen in ("zh", "en") if several else ("zh",):
        speak(tmp_path, chosen)
        for client in ("zhang", "ann", "stranger", None):
            server.client_id = client
            said = language.translated("getting ready")
            assert (said == TABLE["getting ready"]) == (wanted.get(str(client), default) == "zh")
    server.client_id = "ann"  # whose prompt is executed while another is checked
    for note in queued:
        note({"client_id": "zhang"})
    assert language.translated("getting ready") == TABLE["getting ready"] and len(queued) == several


def test_no_more_pages_are_remembered_than_there_can_be(language: Any, tmp_path: Path) -> None:
    for page in range(3000):
        language.note_page_language(b"en", f"{page}" * 1000)
    language.note_page_language(b"zh", "0")
    assert len(language._PAGES) <= 1000 and max(map(len, language._PAGES)) <= 100
    assert language.translated("getting ready") == TABLE["getting ready"], "the newest counts"


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"Comfy.Locale": "zh"'])
def test_settings_that_cannot_be_read_are_no_error(language: Any, tmp_path: Path, text: str) -> None:
    set_language(tmp_path, text)
    assert language.translated("getting ready") == "getting ready"


def test_translations_keep_every_place() -> None:
    for english, translation in TABLE.items():
        places = re.findall(r"\{(\w+)\}", english)
        numbers = [place for place in places if place != "subject"]
        assert numbers == [str(number) for number in range(1, len(numbers) + 1)], english
        assert set(places) == set(re.findall(r"\{(\w+)\}", translation)), english

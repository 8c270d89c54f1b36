"""Everything that a user of the nodes may read from the server has its Chinese: errors, notices, works, the verdict.

In: reading the source for what may be said (`user_sentences`), and running what puts a sentence together. Not in: how
a sentence finds its translation (`test_language`), the editor's own texts (`test_node_texts`).
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apt_train.config import AptConfig, TrainConfig
from apt_train.data.buckets import crop_of
from apt_train.data.color_profiles import IGNORED, UNPROFILED, UNREADABLE
from apt_train.data.folder_files import sort_folder
from apt_train.data.pictures import FRAMES, METADATA
from apt_train.events import BusyEvent
from apt_train.lora_check.verdict import paragraphs
from apt_train.photo_check.finding import Finding
from apt_train.photo_check.look import Look
from apt_train.photo_check.preflight import Preflight, _unchecked
from apt_train.run.log import Log
from apt_train.verdict.recommend import recommended_snapshot
from apt_train.verdict.run_log import log_arrays
from apt_train.verdict.run_summary import summarize
from apt_train.verdict.words import paragraph

from .node_modules import ROOT, node_module
from .synthetic_check_up import check_ups
from .synthetic_run import Line, plausible_log, write_run
from .user_sentences import HOLE, Sentence, of_input_error, sentences

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SOURCES = sorted([*(ROOT / "nodes").rglob("*.py"), *(ROOT / "apt_train").rglob("*.py")])

# Read by the command line alone: the nodes get models from wires.
COMMAND_LINE = {
    "cli.py", "command.py", "apply.py", "write.py", "attention_file.py",
    "config_check.py", "config_tables.py", "diffusers_folder.py", "folder_index.py", "folder_networks.py",
    "json_file.py", "load.py", "schedule_config.py",
    "sniff.py", "tokenizer_check.py", "tokenizer_files.py", "vae_source.py", "weight_files.py", "ldm_vae.py",
    "parts_fit.py",
}  # fmt: skip
# What another sentence, which is listed by itself, is put into; and what wires do not give.
ELSEWHERE = {
    ("dataset.py", HOLE): "a folder's notices, and that nothing else is in it",
    ("image_set.py", HOLE): "an InputError of the folder, raised again",
    ("paths.py", f"{HOLE} ({HOLE}) {HOLE}: give another."): "listed with either end",
    ("settings.py", HOLE): "an InputError of the settings, raised again",
    ("settings_field.py", f"{HOLE} is {HOLE}: {HOLE}."): "looked at as `require`",
    ("settings_field.py", f"{HOLE} is a number of thousands of digits: {HOLE}."): "the same",
    ("settings_field.py", f"{HOLE} is {HOLE}...: {HOLE}."): "the same",
    ("previewing.py", HOLE): "handed on",
    ("listener.py", HOLE): "handed on",
    ("notices.py", HOLE): "kept as it was sent, and read back",
    ("opening.py", HOLE): "handed on",
    ("loop.py", HOLE): "a constant, or put together elsewhere",
    ("watch.py", HOLE): "handed on",
    (
        "requirements.py",
        f"APT Train needs ComfyUI {HOLE} or newer, and this is {HOLE}: update ComfyUI.",
    ): "told in the host's console, which is English",
}


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A sentence in Chinese; itself where there is none."""
    users = tmp_path_factory.mktemp("user")
    (users / "default").mkdir()
    (users / "default" / "comfy.settings.json").write_text('{"Comfy.Locale": "zh"}', encoding="utf-8")
    folders: Any = ModuleType("folder_paths")
    folders.get_user_directory = lambda: str(users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "folder_paths", folders)
        with node_module("host.language") as module:
            yield module.translated


def of_notice(call: ast.Call) -> ast.expr | None:
    """The sentence of `NoticeEvent(...)`, `listener.notice(...)`, `notes.append(...)` and the like."""
    function = call.func
    name = getattr(function, "id", getattr(function, "attr", ""))
    owner = getattr(function, "value", None)
    kept_by = getattr(owner, "id", getattr(owner, "attr", ""))
    tells = name in ("NoticeEvent", "notice", "on_notice")
    return call.args[0] if call.args and (tells or (name == "append" and kept_by in ("notes", "notices"))) else None


def untranslated(picks: Callable[[ast.Call], ast.expr | None], chinese: Callable[[str], str]) -> list[Sentence]:
    """Of the nodes' side; those known to be elsewhere are left out."""
    found = [
        sentence
        for path in SOURCES
        if path.name not in COMMAND_LINE
        for sentence in sentences(path, ROOT, picks)
        if (path.name, sentence.text) not in ELSEWHERE
    ]
    assert len(found) > 10
    return [sentence for sentence in found if not CHINESE.search(chinese(sentence.text))]


def test_no_sentence_is_a_chain_of_semicolons() -> None:
    """Every sentence has its Chinese, so they are all here."""
    table = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    assert [english for english in table["aptTrain"]["server"] if ";" in english] == []


COUNTED = re.compile(
    rf"{HOLE} (bins|blocks|captions|channels|files|images|layers|masks|modules|pictures|rows|steps|tensors|tokens)\b"
)
NEVER_ONE = {  # beyond a limit, not a number, or of latents
    "config_tables.py", "lora_file.py", "pictures.py", "attention.py", "preview_latent.py", "vae_family.py",
    "sheet_cells.py",
}  # fmt: skip


def test_no_sentence_counts_one_in_the_plural() -> None:
    """`wording.counted` chooses the noun's form; otherwise the number stands apart: `(1 of 1)`."""
    found = {
        (path.name, sentence.text)
        for path in SOURCES
        for picks in (of_input_error, of_notice)
        for sentence in sentences(path, ROOT, picks)
        if COUNTED.search(sentence.text)
    }
    assert {name for name, _ in found} == NEVER_ONE and len(found) == len(NEVER_ONE)


def test_every_error_of_the_nodes_has_its_chinese(chinese: Callable[[str], str]) -> None:
    assert untranslated(of_input_error, chinese) == []


def test_every_setting_that_cannot_be_has_its_chinese(chinese: Callable[[str], str]) -> None:
    """`require(ok, name, value, remedy)` makes the sentence."""
    files = [ROOT / "apt_train" / name for name in ("config.py", "settings_field.py")]
    remedies = [s.text for path in files for s in sentences(path, ROOT, of_requirement)]
    assert len(remedies) > 10
    assert [remedy for remedy in remedies if not CHINESE.search(chinese(f"{HOLE} is {HOLE}: {remedy}."))] == []


def of_requirement(call: ast.Call) -> ast.expr | None:
    return call.args[3] if getattr(call.func, "id", "") == "require" else None


def test_every_notice_has_its_chinese(chinese: Callable[[str], str]) -> None:
    assert untranslated(of_notice, chinese) == []
    damaged = [Log([], [4]).notice(), Log([], [4, 7, 9]).notice(), Log([], []).gap(3)]
    assert [text for text in damaged if not CHINESE.search(chinese(text))] == []


def test_every_finding_of_the_preflight_has_its_chinese(chinese: Callable[[str], str]) -> None:
    files = [ROOT / "apt_train" / "photo_check" / f"{name}.py" for name in ("pictures", "masks", "captions")]
    found = [sentence for path in files for sentence in sentences(path, ROOT, of_finding)]
    assert len(found) > 12
    assert [sentence for sentence in found if not CHINESE.search(chinese(sentence.text))] == []
    crop, flat, small = crop_of((64, 64), [(64, 64)]), np.zeros(1), Image.new("RGB", (8, 8))
    plain = Look("a.png", "a toy", (8, 8), crop, flat, flat, False, None, None, small, None)
    for findings in ([], [Finding("", "")], [Finding("", "")] * 2):
        said = [Preflight([plain] * 2, 512, findings, [], []).heading, *_unchecked([plain], None)]
        assert [text for text in said if not CHINESE.search(chinese(text))] == [] and len(said) == 3


def of_finding(call: ast.Call) -> ast.expr | None:
    place = {"Finding": 1, "about": 3}.get(getattr(call.func, "id", ""))
    return None if place is None else call.args[place]


@pytest.mark.parametrize("count", [1, 2])
def test_every_note_on_a_folder_has_its_chinese(count: int, chinese: Callable[[str], str], tmp_path: Path) -> None:
    """A file of each kind that is left out or guessed at, or two."""
    folder = tmp_path / "toys"
    for i in range(count):
        for name in (f"p{i}.png", f"p{i} mask.png", f"p{i}-mask.png", f"q{i}.png", f"q{i} mask.png",
                     f"p{i}_depth.png", f"lone{i}-mask.png", f"c{i}-condlabel.png",
                     f"sub{i}/a.png", f"masks{i}/a.png", f".hidden{i}.png", f"misnamed{i}.dat",
                     ("mask.png", "matte.png")[i]):  # fmt: skip
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(folder / name, format="PNG")
        for name in (f"x{i}.heic", f"orphan{i}.txt", f"other{i}.pdf", f".q{i}.png.icloud"):
            (folder / name).touch()
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "p0.png").touch()
    notes = sort_folder(folder).notes
    assert len(notes) == 15
    assert [note for note in notes if not CHINESE.search(chinese(note))] == []


def test_every_remark_on_a_picture_has_its_chinese(chinese: Callable[[str], str]) -> None:
    forms = (FRAMES, METADATA, UNREADABLE, IGNORED, UNPROFILED)
    remarks = [remark.format(names="a.png and b.png") for remark in forms]
    remarks.append("Left out: a.png cannot be read as a picture (it is empty, damaged or of another format).")
    assert [remark for remark in remarks if not CHINESE.search(chinese(remark))] == []


def test_what_is_left_out_is_there(chinese: Callable[[str], str]) -> None:
    """Neither list names what no longer exists, or what has a translation after all."""
    names = {path.name for path in SOURCES}
    assert names >= COMMAND_LINE
    said = {
        (path.name, sentence.text)
        for path in SOURCES
        for picks in (of_input_error, of_notice)
        for sentence in sentences(path, ROOT, picks)
    }
    assert [place for place in ELSEWHERE if place not in said] == []


# ---- the check-up ----------------------------------------------------------------------------------------------------


def test_every_sentence_of_a_check_up_has_its_chinese(chinese: Callable[[str], str]) -> None:
    said: list[str] = []
    for found in check_ups():
        paragraphs(found, lambda sentence: said.append(sentence) or sentence)
    assert [text for text in dict.fromkeys(said) if not CHINESE.search(chinese(text))] == []
    told = constants("verdict", "lora_check")
    assert len(told) > 20 and [part for part in told if part not in " ".join(said)] == []
    assert CHINESE.search(chinese(BusyEvent("check-up", 0, 2, 9).text))


# ---- the verdict ---------------------------------------------------------------------------------------------------


NORMS = {"denoising": 1.0, "stabilization": 1.0, "alignment": 0.5}
RUNS: dict[str, Callable[[], list[Line]]] = {
    "one step": lambda: plausible_log(1),
    "few steps": lambda: plausible_log(5),
    "calm": lambda: plausible_log(100, ceiling=(0.6, 0.2)),
    "some near 1": lambda: plausible_log(400, rise=60, ceiling=(0.99, 0.5)),
    "most near 1": lambda: plausible_log(400, rise=40, ceiling=(0.99, 0.97)),
    "drift": lambda: plausible_log(100, ratios=(0.1, 0.12), ceiling=(0.6, 0.2)),
    "drift once": lambda: plausible_log(60, ratios=(0.1, 0.12)),
    "risen": lambda: plausible_log(400, ratios=(0.1, 0.6)),
    "falling": lambda: plausible_log(400, loss_drop=0.8, ceiling=(0.6, 0.2)),
    "rising": lambda: plausible_log(800, loss_drop=-0.8, ceiling=(0.6, 0.2)),
    "no prior": lambda: [line | {"gamma": [0.0] * 10} for line in plausible_log(60, regularised=False)],
    "fair": lambda: [line | {"grad_norm_terms": NORMS} for line in plausible_log(60)],
    "drowned": lambda: [line | {"grad_norm_terms": NORMS | {"alignment": 90.0}} for line in plausible_log(60)],
    "one bin": lambda: [line | {"timestep": [50]} for line in plausible_log(60)],
}
APT = TrainConfig(class_word="toy", steps=1000)
CONFIGS = {
    "APT": APT,
    "plain": replace(APT, apt=AptConfig(adaptive_augmentation=False)),
    "DreamBooth": replace(APT, method="dreambooth"),
}


OTHERS: list[dict[str, Any]] = [
    {"truncated": True}, {"left_out": [4]}, {"left_out": [4, 5]}, {"snapshots": []}, {"trend": "flat"},
    {"steps_planned": 1},
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_sentence_of_the_verdict_has_its_chinese(
    run: str, config: str, chinese: Callable[[str], str], tmp_path: Path
) -> None:
    write_run(tmp_path, RUNS[run]())
    log = log_arrays(tmp_path / "log.jsonl")
    snapshots = range(50, 1001, 50)
    summary = summarize(log, CONFIGS[config], snapshots=snapshots)
    said: list[str] = []
    for changed in [summary, *(replace(summary, **other) for other in OTHERS)]:
        paragraph(changed, lambda sentence: said.append(sentence) or sentence)
        said.append(recommended_snapshot(changed).reason)
    assert [text for text in dict.fromkeys(said) if not CHINESE.search(chinese(text))] == []


def test_those_runs_make_it_say_all_that_it_can(tmp_path: Path) -> None:
    said = ""
    for number, (lines, config) in enumerate(itertools.product(RUNS.values(), CONFIGS.values())):
        write_run(tmp_path / str(number), lines())
        summary = summarize(log_arrays(tmp_path / str(number) / "log.jsonl"), config, snapshots=range(50, 1001, 50))
        for changed in (summary, *(replace(summary, **other) for other in OTHERS)):
            said += paragraph(changed) + recommended_snapshot(changed).reason
    assert [part for name in ("words", "recommend") for part in constants(name) if part not in said] == []


def constants(module: str, floor: str = "verdict") -> list[str]:
    """The pieces of its sentences, docstrings left out."""
    tree = ast.parse((ROOT / "apt_train" / floor / f"{module}.py").read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in alone]
    return [text for text in texts if isinstance(text, str) and text.count(" ") > 3]

"""What differs between systems is the same on all: the bytes of texts. Files in use stay, as the tests can pretend."""

from __future__ import annotations

import ast
import codecs
import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apt_train import cli, load_checkpoint
from apt_train.disk.tensor_file import sha256_of_files
from apt_train.errors import InputError
from apt_train.families.reading.tokenizer_files import load_tokenizer
from apt_train.families.reading.weight_files import visible
from apt_train.paths import are_same
from tests.pretend_windows import refuse_files_in_use
from tests.test_atomic import ROOT, SOURCES
from tests.tiny_checkpoint import write_clip_vocabulary
from tests.training import Recorder, run


def of_the_system(tree: ast.AST) -> Iterator[str]:
    """Calls that leave a text's encoding or its line ends to the system."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        owner, _, name = ast.unparse(call.func).rpartition(".")
        words = {keyword.arg for keyword in call.keywords}
        is_file = name == "open" and not owner[:1].isupper() and owner != "os"  # not Image.open, RunFolder.open
        is_file &= not any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args)
        is_text = name == "read_text" or is_file or (owner == "subprocess" and "text" in words)
        if (is_text and "encoding" not in words) or (owner and name == "write_text"):  # without an owner it is ours
            yield ast.unparse(call)


def test_no_text_depends_on_the_system() -> None:
    """Windows reads and writes in an encoding of the country, and ends lines in two characters."""
    places = {path: list(of_the_system(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert {path.relative_to(ROOT).as_posix(): calls for path, calls in places.items() if calls} == {}
    of_dev = of_the_system(ast.parse((ROOT / "dev.py").read_text(encoding="utf-8")))
    assert [call for call in of_dev if "write_text" not in call] == []  # it writes for this machine alone


@pytest.mark.parametrize(
    ("code", "is_seen"),
    [
        ("path.read_text()", True),
        ("open(path)", True),
        ("path.open('w', newline='')", True),
        ("subprocess.run(command, text=True)", True),
        ("draft.write_text(text, encoding='utf-8')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("path.open('x', encoding='utf-8')", False),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("write_text(path, text)", False),
        ("Image.open(path)", False),
    ],
)
def test_the_rule_sees_what_the_system_decides(code: str, is_seen: bool) -> None:
    assert len(list(of_the_system(ast.parse(code)))) == is_seen


MOVES: dict[str, Callable[[Path], object]] = {
    "removed": lambda file: os.remove(file),
    "replaced": lambda file: os.replace(file.with_name("new"), file),
    "renamed": lambda file: os.rename(file, file.with_name("other")),
    "moved with its folder": lambda file: os.rename(file.parent, file.parent.with_name("other")),
    "removed with its folder": lambda file: shutil.rmtree(file.parent),
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("use", ["open", "mapped"])
def test_the_pretended_windows_keeps_what_is_in_use(
    move: str, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "a.safetensors"
    file.parent.mkdir()
    file.with_name("new").touch()
    save_file({"a": torch.ones(3)}, file)
    user = file.open("rb") if use == "open" else load_file(file)
    refused = refuse_files_in_use(monkeypatch)
    with pytest.raises(PermissionError):
        MOVES[move](file)
    assert len(refused) == 1 and file.is_file()
    user.close() if not isinstance(user, dict) else user.clear()
    file.with_name("new").touch()
    MOVES[move](file)
    assert len(refused) == 1


def ignore_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part of a path finds what is called so in other letters, as on Windows and macOS."""
    real = os.stat

    def stat(path: Any, **named: Any) -> os.stat_result:
        with contextlib.suppress(OSError, TypeError):
            names = {name.lower(): name for name in os.listdir(Path(path).parent)}
            path = Path(path).with_name(names.get(Path(path).name.lower(), Path(path).name))
        return real(path, **named)

    monkeypatch.setattr(os, "stat", stat)


AMONG_PICTURES = {
    "check": ["check", "photos", "--sheet", "Photos/sheet.png"],
    "inspect": ["inspect", "a.safetensors", "--checkpoint", "m", "--images", "photos", "--out", "Photos"],
}


@pytest.mark.parametrize("words", AMONG_PICTURES.values(), ids=AMONG_PICTURES)
def test_no_sheet_comes_among_the_pictures_by_other_letters(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    assert not are_same(Path("photos"), Path("Photos"))
    ignore_case(monkeypatch)
    assert cli.main(words) == 2 and "among the pictures" in capsys.readouterr().err


def test_a_folder_too_deep_for_a_snapshot_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not find paths of 260 letters, and those of a snapshot's drafts are the longest."""

    def short(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Any, *arguments: Any, **named: Any) -> Any:
            if len(os.path.abspath(path)) >= 260:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return real(path, *arguments, **named)

        return act

    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, short(getattr(os, name)))
    deep, recorder = tmp_path / ("x" * (169 - len(str(tmp_path)))), Recorder()
    assert run(output_dir=deep / "ab", steps=1, watch_drift=False).steps_done == 1
    with pytest.raises(InputError, match=f"could not be written to {deep / 'abc'}, whose path may be too long"):
        run(output_dir=deep / "abc", steps=1, on_event=recorder)
    assert recorder.steps == [] and [path.name for path in (deep / "abc").iterdir()] in ([], [".lock"])


class WithoutCase(type(Path())):
    """A path that is sorted as on Windows."""

    def __lt__(self, other: Path) -> bool:
        return str(self).lower() < str(other).lower()


def test_a_models_files_have_one_order_and_one_digest_everywhere(tmp_path: Path) -> None:
    for name in ("a_model.safetensors", "B_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    here, there = (visible(folder, "*.safetensors") for folder in (tmp_path, WithoutCase(tmp_path)))
    assert [path.name for path in there] == [path.name for path in here] == sorted(os.listdir(tmp_path))
    digests = {sha256_of_files(tmp_path, files) for files in (here, there, map(WithoutCase, reversed(here)))}
    assert len(digests) == 1


def test_a_models_texts_may_have_been_saved_on_windows(model: Path, tmp_path: Path) -> None:
    """With a byte order mark and other line ends."""
    edited = Path(shutil.copytree(model, tmp_path / "model"))
    vocabulary = write_clip_vocabulary(tmp_path / "tokenizer")
    told: dict[str, Any] = {"max_length": 8, "rows": 1000, "pad_token": "<|endoftext|>"}
    before = load_tokenizer(vocabulary, **told)("a dog photo").input_ids
    for file in (*edited.rglob("*.json"), *vocabulary.iterdir()):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    assert (
        load_checkpoint(edited).text_encoders and load_tokenizer(vocabulary, **told)("a dog photo").input_ids == before
    )

"""What every output goes through: whole files only, in words when the disk will not take them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apt_train.disk import files, tensor_writer
from apt_train.disk.files import (
    atomic_folder,
    atomic_write,
    check_new_file,
    check_writable,
    make_folder,
    sweep,
    write_text,
)
from apt_train.disk.tensor_writer import data_digest, write_tensors
from apt_train.errors import InputError
from apt_train.paths import check_file_name


def _failing(number: int):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    return write


def test_the_name_appears_with_the_whole_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    seen: list[list[str]] = []

    def write(path: Path) -> None:
        path.write_bytes(b"x" * 1000)
        seen.append(sorted(os.listdir(tmp_path)))
        assert path.parent == tmp_path

    atomic_write(target, write)
    assert target.read_bytes() == b"x" * 1000
    assert os.listdir(tmp_path) == ["a.bin"]
    assert len(seen[0]) == 1 and "a.bin" not in seen[0]


@pytest.mark.skipif(os.name == "nt", reason="counts open files as POSIX does")
def test_a_write_leaves_nothing_open(tmp_path: Path) -> None:
    """A host that runs for days would reach the system's limit."""
    before = psutil.Process().num_fds()
    for name in ("a.bin", "b.bin"):
        atomic_write(tmp_path / name, lambda path: path.write_bytes(b"x"))
    with atomic_folder(tmp_path / "folder"):
        pass
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises((error, InputError)):
        atomic_write(target, write)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "not writable"),
        (errno.EROFS, "not writable"),
        (errno.EIO, os.strerror(errno.EIO).lower()),
    ],
)
def test_system_errors_come_in_words(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(InputError) as caught:
        atomic_write(tmp_path / "lora.safetensors", _failing(number))
    message = str(caught.value)
    assert words in message and "lora.safetensors" in message and str(tmp_path) in message
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="needs a file size limit")
def test_a_real_full_disk(tmp_path: Path) -> None:
    """A process that may write 4096 bytes and no more: the system refuses half-way through a tensor."""
    code = f"""
import resource, torch
from pathlib import Path
from apt_train.errors import InputError
from apt_train.disk.tensor_writer import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensors(Path({str(tmp_path)!r}) / "big.safetensors", {{"a": torch.zeros(100_000)}})
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "big.safetensors could not be written" in done.stdout and "file too large" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="does not exist"):
        atomic_write(tmp_path / "no" / "a.bin", lambda path: path.write_bytes(b""))
    with pytest.raises(InputError, match=r"a\.bin could not be written"):
        atomic_write(tmp_path / "file" / "a.bin", lambda path: path.write_bytes(b""))


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_is_that_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    """Also when the writer is a library that makes private files."""
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "a", lambda path: save_file({"x": torch.zeros(1)}, path))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """As far as waiting goes; the waits that were made."""
    waits: list[float] = []
    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


def test_windows_is_asked_again_while_another_program_reads(tmp_path: Path, windows: list[float]) -> None:
    answers = iter([PermissionError(13, "in use"), PermissionError(13, "in use"), None])
    real = os.replace

    def replace(*names: Any) -> None:
        if (error := next(answers)) is not None:
            raise error
        real(*names)

    files.os.replace = replace
    atomic_write(tmp_path / "a", lambda path: path.write_text("new"))
    assert (tmp_path / "a").read_text() == "new" and windows == [0.1, 0.3]


def test_what_stays_in_use_is_told_after_some_seconds(tmp_path: Path, windows: list[float]) -> None:
    def replace(*_: object) -> None:
        raise PermissionError(errno.EACCES, "in use")

    files.os.replace = replace
    with pytest.raises(InputError, match="another program has the file open"):
        atomic_write(tmp_path / "a", lambda path: path.write_text("new"))
    assert sum(windows) == pytest.approx(4.4) and list(tmp_path.iterdir()) == []


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deeper")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "file/run", "link", "link/run"):
        with pytest.raises(InputError, match="is not a folder"):
            check_writable(tmp_path / place)


@pytest.mark.parametrize(
    ("name", "says"), [("taken", "is a folder"), ("nowhere/x", "does not exist"), ("nul.png", "reserved name")]
)
def test_a_file_that_could_not_be_written_is_refused_beforehand(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "there").write_text("mine")
    check_new_file(tmp_path / "there")
    check_new_file(tmp_path / "new")
    with pytest.raises(InputError, match=says):
        check_new_file(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "there"]
    assert (tmp_path / "there").read_text() == "mine"


def test_check_writable_refuses_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own answer is simulated: a superuser may write anywhere."""

    def refuse(path: object, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    for asked in (tmp_path, tmp_path / "run" / "first"):
        with pytest.raises(InputError, match=f": {re.escape(str(tmp_path))} is not writable"):
            check_writable(asked)


NO_NAMES = ["con.safetensors", "NUL", "com1.tar.gz", "con .txt", "CONIN$", "lpt².txt", "a" * 300, "é" * 128, ""]


@pytest.mark.parametrize(
    "name", [*NO_NAMES, "toy:1.safetensors", "toy.", "toy ", "a\\b.png", "what?", "a\nb", 'say "x"']
)
def test_names_that_some_system_cannot_store(name: str) -> None:
    with pytest.raises(InputError):
        check_file_name(name)
    for other in ("com1_subject.safetensors", "it's (1), été 玩具.png", ".lock"):
        check_file_name(other)  # reserved is the whole part before the first dot


def test_a_folder_appears_whole_in_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "step_1"
    for content in ("old", "new"):
        with atomic_folder(target) as draft:
            (draft / "a").write_text(content)
            assert draft != target and (content == "old") == (not target.exists())
    assert (target / "a").read_text() == "new" and os.listdir(tmp_path / "runs") == ["step_1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_folder_that_fails_keeps_the_old_one(tmp_path: Path, error: BaseException) -> None:
    with atomic_folder(tmp_path / "step_1") as draft:
        (draft / "a").write_text("old")
    with pytest.raises((KeyboardInterrupt, InputError)), atomic_folder(tmp_path / "step_1") as draft:
        (draft / "a").write_text("half")
        raise error
    assert (tmp_path / "step_1" / "a").read_text() == "old" and os.listdir(tmp_path) == ["step_1"]


def test_a_full_disk_is_told_of_the_folder_that_the_user_knows(tmp_path: Path) -> None:
    """Not of the draft, which is gone by then."""

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(InputError, match=f"a could not be written to {tmp_path}, the disk is full"),
        atomic_folder(tmp_path / "step_1") as draft,
    ):
        atomic_write(draft / "a", full)


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "a").write_text("old")
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "step_1" and (Path(source) / "a").read_text() == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="step_1 could not be written"), atomic_folder(tmp_path / "step_1") as draft:
        (draft / "a").write_text("new")
    assert (tmp_path / "step_1" / "a").read_text() == "old" and os.listdir(tmp_path) == ["step_1"]


# -- links


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that links point to."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a").write_text("the user's")
    return folder


def test_a_link_gives_way_and_what_it_points_to_stays(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "file").symlink_to(outside / "a")
    (tmp_path / "dangling").symlink_to(outside / "new")
    for name in ("file", "dangling"):
        write_text(tmp_path / name, "ours")
    for name in ("folder", "previews"):
        (tmp_path / name).symlink_to(outside, target_is_directory=True)
    with atomic_folder(tmp_path / "folder") as draft:
        (draft / "a").write_text("ours")
    make_folder(tmp_path / "previews")
    for name in ("file", "dangling", "folder", "previews"):
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "ours"
    assert os.listdir(outside) == ["a"] and (outside / "a").read_text() == "the user's"


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "previews").write_text("mine")
    with pytest.raises(InputError, match="previews is a file, where a folder belongs"):
        make_folder(tmp_path / "previews")
    assert (tmp_path / "previews").read_text() == "mine"


# -- what killed writers leave

WRITER = """
import sys
from pathlib import Path
from apt_train.disk.files import atomic_folder, atomic_write
folder = Path(sys.argv[1])

def half(path):
    path.write_text("half")
    print("ready", flush=True)
    sys.stdin.readline()
    path.write_text("all")

if sys.argv[2] == "file":
    atomic_write(folder / "a", half)
else:
    with atomic_folder(folder / "a") as draft:
        half(draft / "inside")
"""


@contextmanager
def writer(folder: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing."""
    command = [sys.executable, "-c", WRITER, str(folder), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("alone", [False, True])
def test_the_draft_of_a_killed_writer_is_swept_and_that_of_a_living_one_is_not(
    tmp_path: Path, kind: str, alone: bool
) -> None:
    with writer(tmp_path, kind) as process:
        (draft,) = os.listdir(tmp_path)
        assert re.fullmatch(r"\.[0-9a-f]+\.tmp", draft)
        os.utime(tmp_path / draft, (0, 0))
        sweep(tmp_path, alone=alone)
        assert os.listdir(tmp_path) == [draft]
        process.communicate("go on\n")
        assert process.returncode == 0 and os.listdir(tmp_path) == ["a"]
    with writer(tmp_path, kind) as process:
        process.kill()
        process.wait()
        assert len(os.listdir(tmp_path)) == 2
        sweep(tmp_path, alone=alone)
    assert os.listdir(tmp_path) == ["a"]


OF_ANOTHER_MACHINE, OF_AN_EARLIER_VERSION = f".{'0' * 12}{1:08x}{'c' * 12}.tmp", ".0123456789abcdef.tmp"


@pytest.mark.parametrize("name", [OF_ANOTHER_MACHINE, OF_AN_EARLIER_VERSION])
@pytest.mark.parametrize("hours", [0, 23, 25])
@pytest.mark.parametrize("alone", [False, True])
def test_a_draft_of_an_unknown_writer_goes_after_a_day_or_where_nobody_else_writes(
    tmp_path: Path, name: str, hours: int, alone: bool
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "state.safetensors").write_text("half")
    written = time.time() - hours * 3600
    os.utime(tmp_path / name, (written, written))
    sweep(tmp_path, alone=alone)
    assert (tmp_path / name).exists() == (hours < 24 and not alone)


def test_nothing_but_drafts_is_swept_and_no_link_is_followed(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    kept = {".0123.tmp", "0123456789abcdef.tmp", ".0123456789abcdeg.tmp", ".lock", ".0123456789abcdef.tmp.txt", "a.tmp"}
    for name in kept:
        (root / name).write_text("not ours")
    (root / f".{'0' * 16}.tmp").symlink_to(outside, target_is_directory=True)
    (root / f".{'1' * 16}.tmp").symlink_to(outside / "a")
    (root / f".{'2' * 16}.tmp").mkdir()
    (root / f".{'2' * 16}.tmp" / "link").symlink_to(outside, target_is_directory=True)
    sweep(root, alone=True)
    assert set(os.listdir(root)) == kept | {f".{'0' * 16}.tmp", f".{'1' * 16}.tmp"}
    assert (outside / "a").read_text() == "the user's"
    sweep(tmp_path / "missing", alone=True)
    sweep(outside / "a", alone=True)


# -- safetensors files


def _tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "b.half": torch.randn(3, 5, generator=draw).half(),
        "a.brain": torch.randn(7, generator=draw).bfloat16(),
        "c.wide": torch.randn(2, 2, generator=draw).double(),
        "d.turned": torch.randn(4, 3, generator=draw).t(),
        "e.scalar": torch.tensor(1.5),
        "f.flag": torch.tensor([True, False, True]),
        "g.count": torch.arange(5),
        "h.empty": torch.zeros(0, 4),
    }


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors, metadata = _tensors(), {"b": "2", "a": 'ä "quoted" \n line', "empty": ""}
    write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_data_lies_as_the_library_lays_it(tmp_path: Path) -> None:
    """Same tensors, same data region; so hashes of that region agree with those other tools compute."""
    tensors = {key: tensor.contiguous() for key, tensor in _tensors().items() if key[0] in "bcd"}
    save_file(tensors, tmp_path / "theirs")
    write_tensors(tmp_path / "ours", tensors)

    def data(name: str) -> bytes:
        content = (tmp_path / name).read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert data("ours") == data("theirs")
    assert hashlib.sha256(data("ours")).hexdigest() == data_digest(tensors)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4),
    st.permutations(sorted(_tensors())),
)
def test_equal_content_is_equal_bytes(tmp_path_factory, metadata: dict[str, str], order: list[str]) -> None:
    """Whatever the order in which the content was put together."""
    folder, tensors = tmp_path_factory.mktemp("bytes"), _tensors()
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates cannot be stored
        return
    write_tensors(folder / "1", tensors, metadata)
    write_tensors(folder / "2", {key: tensors[key] for key in order}, dict(reversed(metadata.items())))
    assert (folder / "1").read_bytes() == (folder / "2").read_bytes()


@pytest.mark.parametrize("damage", ["value", "key", "metadata"])
def test_a_file_that_reads_back_different_never_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A disk that stores other bytes than it was given."""
    target, tensors, metadata = tmp_path / "x.safetensors", {"key_a": torch.ones(4)}, {"name": "value_a"}
    write_tensors(target, tensors, metadata)
    old = target.read_bytes()
    real = tensor_writer.header_bytes
    swap = {"key": (b"key_a", b"key_b"), "metadata": (b"value_a", b"value_b"), "value": (b"", b"")}[damage]
    monkeypatch.setattr(tensor_writer, "header_bytes", lambda *a: real(*a).replace(*swap) if swap[0] else real(*a))
    if damage == "value":
        raw = tensor_writer.raw_bytes
        monkeypatch.setattr(tensor_writer, "raw_bytes", lambda tensor: raw(tensor + 1))
    with pytest.raises(InputError, match=r"x\.safetensors reads back different"):
        write_tensors(target, tensors, metadata)
    assert target.read_bytes() == old and os.listdir(tmp_path) == ["x.safetensors"]

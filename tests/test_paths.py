"""Paths as they are typed, and commands as they are printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from apt_train import cli
from apt_train.errors import InputError
from apt_train.paths import absolute, argument, command, expanded, one_line

posix = pytest.mark.skipif(os.name == "nt", reason="as shells of POSIX read it")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom the system knows nothing, as in many containers."""
    import pwd

    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


@posix
def test_a_home_directory_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~") == tmp_path and expanded("~/a b") == tmp_path / "a b"
    assert expanded("~root") != Path("~root")
    assert expanded("a/~/b") == Path("a/~/b") and expanded("./~x") == Path("~x")


@posix
@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "~/x"])
@pytest.mark.usefixtures("homeless")
def test_a_home_directory_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--images is ~.*no home directory.*write the whole path"):
        expanded(text, "--images")


@posix
def test_what_is_really_called_so_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-of-this-name").mkdir()
    assert expanded("~nobody-of-this-name").is_dir()


UNUSABLE = {
    "empty": ("", "is empty"),
    "blank": ("  ", "is empty"),
    "zero byte": ("a\0b", "no file can be called"),
    "no letters": ("a/\udcff", "has bytes that are no letters"),
    "long name": ("x" * 300, "is too long"),
    "long path": ("/x" * 5000, "is too long"),
}


@posix
@pytest.mark.parametrize("case", UNUSABLE)
def test_what_no_file_can_be_called_is_refused(case: str) -> None:
    text, words = UNUSABLE[case]
    with pytest.raises(InputError, match=words) as refusal:
        expanded(text, "--output")
    assert len(str(refusal.value)) < 250 and "\0" not in str(refusal.value)


@posix
def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="circle"):
        expanded(tmp_path / "a" / "c")


@posix
def test_without_a_current_folder_every_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="current folder does not exist"):
        absolute(Path("x"))
    for words in (["report", "x"], ["resume", str(tmp_path)], ["demo"]):
        assert cli.main(words) == 2
        assert capsys.readouterr().err.count("current folder") == 1
    os.chdir(tmp_path)  # for what comes after


NAMES = [
    "plain",
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "-rf",
    "~",
    "~root",
    "a;b",
    "tüy",
    "玩具",
    "a\nb",
    "*",
    "",
    "\udcff",
]


@posix
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_printed_command_can_be_pasted(name: str, tmp_path: Path) -> None:
    """The shell gives back the very bytes, and our own reading makes nothing else of them."""
    pasted = command("resume", argument(Path(name)) if name else name)
    assert pasted.startswith("apt-train resume ") and "\n" not in pasted
    script = pasted.replace("apt-train", "printf '%s\\0'", 1)
    got = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True).stdout.split(b"\0")[1]
    assert os.path.normpath(got) == os.path.normpath(os.fsencode(name)) and not got.startswith((b"-", b"~"))


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("plain", "plain"), (r"C:\runs\a", r"C:\runs\a"), ("a b", '"a b"'), ("a&b", '"a&b"'), ("it's", '"it\'s"')],
)
def test_a_command_for_windows_is_quoted_as_its_shells_do(
    word: str, quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apt_train.paths.os.name", "nt")
    result = command("resume", word)
    monkeypatch.undo()
    assert result == f"apt-train resume {quoted}"


def test_a_name_with_line_breaks_stays_on_one_line() -> None:
    assert one_line("a\nb\x1b[31m \udcff ü") == r"a\nb\x1b[31m \udcff ü"


@posix
def test_no_path_option_takes_what_cannot_be_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"--checkpoint": str(tmp_path), "--images": str(tmp_path), "--output": str(tmp_path / "out")}
    more = ("--tokenizer", "--prior-images")
    for option in (*good, *more):
        for value in ("", "~nobody-of-this-name", "x" * 300, "a\0b", "\udcff"):
            words = [f"{name}={text}" for name, text in {**good, option: value}.items()]
            assert cli.main(["run", "--class-word", "toy", *words]) == 2
            shown = capsys.readouterr().err
            assert re.fullmatch(rf"apt-train: {option} .*\n", shown), shown
    for words in (["resume", ""], ["report", ""], ["demo", "--output="], ["report", "a\0b"], ["resume", "x" * 300]):
        assert cli.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1

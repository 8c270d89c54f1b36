"""A terminal that cannot be written to: the work is done all the same, and nothing but the text is lost."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apt_train import cli
from apt_train.console.terminal import lossy, lossy_output
from tests.test_cli import arguments

ROOT = Path(__file__).resolve().parent.parent


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


class WriteOnly:
    """What other programs put in a stream's place: no `isatty`, `flush`, `encoding` or `fileno`."""

    def write(self, text: str) -> int:
        return len(text)


ERRORS: dict[str, Any] = {
    "gone terminal": lambda: Broken(OSError(errno.EIO, "Input/output error")),
    "full disk": lambda: Broken(OSError(errno.ENOSPC, "No space left on device")),
    "closed pipe": lambda: Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "closed stream": lambda: Broken(ValueError("I/O operation on closed file.")),
    "written to by a signal": lambda: Broken(RuntimeError("reentrant call inside <_io.BufferedWriter>")),
    "none": lambda: None,
    "that can only be written to": lambda: WriteOnly(),
}


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("kind", ERRORS)
def test_a_run_ends_well_whatever_becomes_of_the_terminal(
    kind: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, ERRORS[kind]())
    assert cli.main([*arguments(model, photos, tmp_path / "out", "--steps", "1"), "--no-watch-drift"]) == 0
    assert (tmp_path / "out" / "toy_subject.safetensors").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_a_console_lacks_are_written_out(encoding: str) -> None:
    """Also those of file names that are in no encoding at all."""
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding)
    print("tüy 玩具 \udcff", file=lossy(stream))
    stream.flush()
    shown = bytes_.getvalue().decode(encoding)
    assert "\\udcff" in shown and ("玩具" in shown or "\\u73a9\\u5177" in shown)


def test_a_stream_is_itself_again_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with lossy_output():
        assert lossy(sys.stdout) is sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of the shell in which `$apt` is the command."""
    apt = f"{sys.executable} -m apt_train"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "apt": apt, **variables}
    )


COMMANDS = {  # what is done to the streams, and the exit code
    "help, closed": ("$apt run --help >&-", 0),
    "help, full disk": ("$apt run --help >/dev/full", 0),
    "help, closed pipe": ('$apt run --help | true; exit "${PIPESTATUS[0]}"', 0),
    "help, nothing open": ("$apt run --help <&- >&- 2>&-", 0),
    "error, closed": ("$apt tset 2>&-", 2),
    "error, full disk": ("$apt tset 2>/dev/full", 2),
    "error, letters": ("PYTHONIOENCODING=ascii $apt resume tüy", 2),
}


@pytest.mark.skipif(os.name == "nt" or not os.path.exists("/dev/full"), reason="needs a shell and /dev/full")
@pytest.mark.parametrize("case", COMMANDS)
def test_help_and_errors_end_with_their_exit_code(case: str) -> None:
    script, code = COMMANDS[case]
    done = shell(script)
    assert done.returncode == code, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Exception ignored", "Error:")), done.stderr


def test_a_closed_stream_leaves_its_number_to_no_file(tmp_path: Path) -> None:
    """What a library writes to number 2 would stand in the middle of the run's log."""
    code = (
        "import os, sys; os.close(2); from apt_train.console.terminal import lossy_output\n"
        "with lossy_output():\n print(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) > 2

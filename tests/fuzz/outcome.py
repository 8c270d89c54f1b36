"""What one case came to, in this process: success, one sentence, or a finding.

In: the rules an outcome is held to, and what is watched meanwhile (network, pickles, processes, files written
elsewhere, warnings, memory). Not in: time, which needs another process (`worker`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from apt_train.errors import InputError

from .case import Case

GROWTH = 1_400  # MB that a case may take: 2 GB less what the imported libraries take
SENTENCE = 1_000  # characters of the longest sentence that anyone would read
_FORBIDDEN = (
    "socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "pickle.find_class", "urllib.Request", "ftplib.connect", "smtplib.connect",
)  # fmt: skip
_WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Finding:
    """An outcome that is neither success nor one sentence."""

    kind: str  # crash, sentence, hang, memory, died, forbidden, outside, wrong
    where: str  # one line; findings of one kind and place count as the same
    text: str  # for people: the traceback, the sentence

    @property
    def key(self) -> str:
        return f"{self.kind}: {self.where}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


class Wrong(AssertionError):
    """A target's own check of a success failed."""


class Forbidden(BaseException):
    """Raised where the network, a pickle or a process is asked for: past those who would try again."""


class Watch:
    """What the process does while a case runs. An audit hook cannot be taken out, so there is one, asleep between."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[Finding] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def on(self, folder: Path) -> Iterator[None]:
        self.folder, self.seen = folder, []
        try:
            yield
        finally:
            self.folder = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _FORBIDDEN:
            self._note("forbidden", event, f"{event} {arguments!r:.300}")
            raise Forbidden(event)
        if event in _WRITING or (event == "open" and _writes(arguments)):
            for path in arguments[: 2 if event == "os.rename" else 1]:
                self._refuse_outside(event, path)

    def _refuse_outside(self, event: str, path: Any) -> None:
        """The machine that this runs on is not to be harmed, so such a write also fails."""
        folder = self.folder
        if folder is None or not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith((str(folder), str(_temporary(folder)), "/dev/null", "/proc/self/")):
            self._note("outside", event, place)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)

    def _note(self, kind: str, where: str, text: str) -> None:
        stack = "".join(traceback.format_stack(limit=40))
        self.seen.append(Finding(kind, f"{where} from {_place_in(traceback.extract_stack())}", f"{text}\n{stack}"))


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else False


def judge(run: Callable[[Path, Case], None], folder: Path, case: Case, watch: Watch) -> Finding | None:
    """Run a case in its folder, which is the working directory meanwhile; None: as it should be."""
    before = _forget_peak()
    here = os.getcwd()
    os.chdir(folder)
    _temporary(folder).mkdir(exist_ok=True)
    try:
        with mock.patch.object(tempfile, "tempdir", str(_temporary(folder))), watch.on(folder), _in_silence():
            finding = _outcome(run, folder, case)
    finally:
        os.chdir(here)
    grown = _memory("VmHWM") - before
    if grown > GROWTH and (finding is None or finding.kind != "crash"):
        return Finding("memory", finding.key if finding else "a good end", f"The case took {grown} MB.")
    seen = [noted for noted in watch.seen if not (noted.kind == "outside" and _is_asked_for(folder, case, noted))]
    return seen[0] if seen else finding


def _temporary(folder: Path) -> Path:
    """Where a case may make its temporary files: beside its folder, in which they might count for something."""
    return folder.with_name(f"{folder.name}-temporary")


def _is_asked_for(folder: Path, case: Case, noted: Finding) -> bool:
    """Whether a command line named the folder, or one in it, that was written to."""
    given = case.arguments if isinstance(case.arguments, dict) else {}
    place = noted.text.partition("\n")[0]
    surroundings = {name: value for name, value in given.get("environment", {}).items() if value is not None}
    with mock.patch.dict(os.environ, surroundings):
        outward = [
            os.path.expanduser(word) for word in given.get("argv", []) if word.startswith((os.sep, "~")) or ".." in word
        ]
    named = [os.path.normpath(folder / word) for word in outward]
    return any(place.startswith(os.path.dirname(path)) for path in named)


def _outcome(run: Callable[[Path, Case], None], folder: Path, case: Case) -> Finding | None:
    try:
        run(folder, case)
    except InputError as error:
        return check_sentence(_without_long_words(str(error), case.arguments))
    except Wrong as error:
        return Finding("wrong", str(error).partition(":")[0], str(error))
    except BaseException as error:  # also SystemExit, or what a library raises past Exception
        place = _place_in(traceback.extract_tb(error.__traceback__))
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-5)
        return Finding("crash", f"{type(error).__name__} in {place}", "".join(lines)[-3000:])
    return None


def _without_long_words(sentence: str, given: Any) -> str:
    """A sentence may say again what was typed, however long that was."""
    if isinstance(given, dict):
        given = list(given.values())
    for item in given if isinstance(given, list) else []:
        sentence = _without_long_words(sentence, item)
    return sentence.replace(given, given[:10] + "...") if isinstance(given, str) and len(given) > 100 else sentence


def check_sentence(text: str) -> Finding | None:
    """A user reads it in a terminal or a box: one line, not endless."""
    if not text.strip():
        return Finding("sentence", "empty", text)
    if len(text) > SENTENCE:
        return Finding("sentence", f"too long, {text[:30]}", f"{len(text)} characters: {text[:400]} ...")
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in text):
        return Finding("sentence", "a line break, a control character or half a character", repr(text))
    return None


def _place_in(frames: traceback.StackSummary) -> str:
    """The innermost function of the package, else the innermost of all."""
    ours = [frame for frame in frames if f"{os.sep}apt_train{os.sep}" in frame.filename] or list(frames)[-1:]
    return f"{'/'.join(Path(ours[-1].filename).parts[-2:])} {ours[-1].name}" if ours else "nowhere"


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Output goes nowhere; a warning from the package is an error, as in the tests."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="apt_train")
        yield


def _forget_peak() -> int:
    """Start measuring the peak anew; what is in use now, in MB (0 where the system does not tell)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:")), 0)

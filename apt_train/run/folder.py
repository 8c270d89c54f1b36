"""The folder of a run: who may use it, and which run it holds.

    config.json  log.jsonl  NAME.safetensors  NAME_embedding.safetensors  previews/  snapshots/  indicator.png ...

In: the folder's identity, its first files and its log. Not in: reading and writing single files (`config_file`, `log`,
`state`, `snapshot`), the LoRA file (`export`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..disk.files import DISK_FULL, check_deep_file, check_writable, sweep
from ..errors import InputError
from ..names import (
    CONFIG,
    LOG,
    PREVIEWS,
    RUN_FILES,
    RUN_FOLDERS,
    SNAPSHOTS,
    check_subject_name,
    embedding_file,
    lora_file,
)
from ..paths import argument, command, expanded
from ..wording import reason_of
from .config_file import OURS, SavedConfig, read_config, write_config
from .content import difference
from .lock import held
from .log import Log, add_to_line, append, check_numbers, cut_log, line_bytes

if TYPE_CHECKING:
    import torch

    from ..events import StepEvent


class RunFolder:
    """A run's folder. `open_new` and `open_existing` only check and refuse; nothing is written before `start`."""

    def __init__(self, path: Path, name: str, before: SavedConfig | None = None) -> None:
        """`before`: what a run to resume began with, or was last resumed with."""
        self.path, self.name, self.before = path, name, before
        self.snapshots, self.previews = path / SNAPSHOTS, path / PREVIEWS
        self.lora, self.embedding = path / lora_file(name), path / embedding_file(name)
        self._config: dict[str, Any] = {}
        self._log: list[bytes] = []  # the whole log, in case the folder disappears during training

    @staticmethod
    def open(output_dir: str | Path | None, name: str, resume: bool) -> RunFolder | None:
        """The folder of a new or resumed run; None without `output_dir`. InputError: as in the two methods below."""
        if output_dir is None:
            if resume:
                raise InputError("resume needs the folder of the run to continue: give output_dir.")
            return None
        path = expanded(output_dir, "The output folder")
        return RunFolder.open_existing(path, name) if resume else RunFolder.open_new(path, name)

    @staticmethod
    def open_new(path: str | Path, name: str) -> RunFolder:
        """A folder for a new run. InputError: it holds a run or other files, or is not writable."""
        path = Path(path)
        found = _visible(path)
        never_stepped = found == {CONFIG, LOG} and (path / LOG).stat().st_size == 0  # overwriting it loses nothing
        if CONFIG in found and not never_stepped:
            again = command("resume", argument(path))
            go_on = f"go on with `{again}`" if _is_resumed_by_command(path) else "resume it where it was started"
            raise InputError(f"{path} already holds a run: choose another output folder, or {go_on}.")
        if found and CONFIG not in found:
            raise InputError(f"{path} is not empty and holds no run: choose an empty or a new output folder.")
        check_subject_name(name)
        check_writable(path)
        return RunFolder(path, name)

    @staticmethod
    def open_existing(path: str | Path, name: str) -> RunFolder:
        """The folder of a run to resume. InputError: it holds none, or is not writable."""
        path = Path(path)
        before = read_config(path)
        before.check_complete()
        _check_kinds(path, name)
        _check_other_name(path, name, before.content["name"])
        check_writable(path)
        folder = RunFolder(path, name, before)
        if folder.snapshots.is_symlink():
            raise InputError(f"{folder.snapshots} is a link: put the folder itself in its place, then resume.")
        if folder.snapshots.is_dir():
            check_writable(folder.snapshots)
        _check_log(path / LOG)
        return folder

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Inside the block no other process can train in this folder; it is made if it does not exist.

        Drafts of killed writers are removed first. InputError: another process trains there, or the paths of a
        snapshot's files would be too long for the system.
        """
        check_folder(self.path)
        with held(self.path):
            for folder in (self.path, self.snapshots, self.previews):
                if folder == self.path or not folder.is_symlink():
                    sweep(folder, alone=True)
            check_deep_file(self.path, Path(SNAPSHOTS, embedding_file(self.name)))
            yield

    def check_same_run(self, digest: str, config: TrainConfig, dtype: torch.dtype, parts: Mapping[str, Any]) -> None:
        """Refuse to resume with other weights, pictures or settings than the run began with, naming what differs.

        `parts`: from `Content.parts`. Folders of older versions hold none, so the message is less specific.
        """
        assert self.before is not None, "a new run is compared with none"
        saved, before = self.before.content, self.before.settings
        if before.steps != config.steps and config.reads_total_steps:
            raise InputError(
                f"steps was {before.steps} in {self.path}, and its schedule reads it: keep that number in place "
                f"of {config.steps}, or train again with a constant schedule."
            )
        if saved.get("dtype", str(dtype)) != str(dtype):
            raise InputError(
                f"{self.path} was trained in {saved['dtype']}, and this would go on in {dtype}: go on on the same kind "
                "of device, with the same precision."
            )
        if saved.get("digest") != digest:
            others = difference(saved.get("parts"), parts, before, config)
            raise InputError(
                f"{self.path} holds a run of {others}: give what it began with, or choose another output folder."
            )

    def start(self, digest: str, config: TrainConfig, record: Mapping[str, Any]) -> None:
        """Write `config.json`; `record`: the caller's entries beside the settings."""
        self._config = {"name": self.name, "digest": digest, "config": config.to_dict(), **record}
        write_config(self.path, self._config)

    def cut_log(self, step: int, *, bins: int, without: tuple[str, ...] = ()) -> Log:
        """Cut `log.jsonl` back to `step` steps, because later ones were not saved, and read what remains.

        `without`: fields to drop, because later values would not be comparable with them.
        """
        text, log = cut_log(self.path / LOG, step, bins, without=without)
        self._log = [text]
        return log

    def add_drift(self, step: int, drift: Mapping[str, float]) -> None:
        """Add a late measurement to the line of its step; all other lines are unchanged."""
        self._log = [add_to_line(self.path / LOG, step, {"drift": dict(drift)})]

    def log(self, event: StepEvent) -> None:
        """Append a step to `log.jsonl`. InputError: the disk is full, or the folder is gone."""
        check_numbers(event.numbers, event.terms)
        raw = line_bytes(event.log_line())
        self._log.append(raw)
        lost = [not (self.path / name).exists() for name in (CONFIG, LOG)]
        if all(lost):
            again = command("resume", argument(self.path))
            go_on = f"continues with `{again}`" if "inputs" in self._config else "can be resumed where it was started"
            raise InputError(
                f"{self.path} was deleted or moved while training: what this run had trained is saved there again, and "
                f"{go_on}."
            )
        if any(lost):
            self.complete()
        else:
            self._append(raw)

    def complete(self) -> None:
        """Rewrite those of the folder's first files that vanished since the run started. InputError: that fails."""
        check_folder(self.path)
        if self._config and not (self.path / CONFIG).exists():
            write_config(self.path, self._config)
        if self._log and not (self.path / LOG).exists():
            self._append(b"".join(self._log))

    def _append(self, raw: bytes) -> None:
        try:
            append(self.path / LOG, raw)
        except OSError as error:
            full = error.errno in DISK_FULL
            what, do = ("the disk is full", "free some space") if full else (reason_of(error), "let it be written to")
            raise InputError(f"{LOG} could not be written to {self.path} ({what}): {do}, then resume.") from error


def check_record(record: object) -> None:
    """InputError: a caller's entries for `config.json` that JSON cannot hold, or in the place of a run's own."""
    try:
        names = json.loads(json.dumps(record)).keys()
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"record cannot be written as JSON ({error}): give texts and numbers by name.") from None
    if taken := sorted(names & set(OURS)):
        raise InputError(f"record has an entry {taken[0]}, which every run has itself: give it another name.")


def check_folder(path: Path) -> None:
    """Make a run's folder if it is missing. InputError: a file is in its place, or it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, where a run has a folder: move it away, then resume.") from None
        raise InputError(f"{path} cannot be made ({reason_of(error)}): choose another output folder.") from error


def _is_resumed_by_command(path: Path) -> bool:
    """False for a run of a node, a demo or a program, whose inputs the command line does not know."""
    with contextlib.suppress(InputError):
        return "inputs" in read_config(path).content
    return False


def _visible(path: Path) -> set[str]:
    """The names of all entries, except those left by file browsers or killed writers."""
    try:
        names = {item.name for item in path.iterdir()} if path.is_dir() else set[str]()
        return {name for name in names if not name.startswith(".") and name not in ("desktop.ini", "Thumbs.db")}
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): choose another output folder.") from error


def _check_kinds(path: Path, name: str) -> None:
    """InputError: there is a folder where a run has a file, or a file where it has a folder."""
    for file in (*RUN_FILES, lora_file(name), embedding_file(name)):
        if (path / file).is_dir():
            raise InputError(f"{path / file} is a folder, where a run has a file: move it away, then resume.")
    for folder in RUN_FOLDERS:
        if (path / folder).exists() and not (path / folder).is_dir():
            raise InputError(f"{path / folder} is a file, where a run has a folder: move it away, then resume.")


def _check_log(file: Path) -> None:
    """InputError if the log cannot be appended to, which would end the run at its first step."""
    if not file.is_file() or file.is_symlink():  # a link will be replaced by a file
        return
    try:
        append(file, b"")
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({reason_of(error)}): correct its permissions, then resume."
        ) from None


def _check_other_name(path: Path, name: str, before: str) -> None:
    """InputError if the new name's LoRA would be the old name's embedding file, or the other way round."""
    if lora_file(name).lower() == embedding_file(before).lower() or (
        embedding_file(name).lower() == lora_file(before).lower()
    ):
        raise InputError(f"identifier is {name!r}, which {path} has a file of as {before!r}: choose another name.")

"""The folder a run lives in: who may use it, what it is a run of, its log.

    config.json  log.jsonl  NAME.safetensors  NAME_embedding.safetensors  previews/  snapshots/  indicator.png ...

In: the folder's identity and its log. Not in: the state inside a snapshot (snapshot.py), the LoRA file (export.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .captions import embedding_stem, subject_captions
from .config import TrainConfig
from .errors import InputError
from .events import StepEvent
from .files import check_file_name, check_writable, patiently, sweep, write_text

if TYPE_CHECKING:
    import torch

    from .dataset import ImageSet
    from .noise import NoiseSchedule

FORMAT = 1
RECIPE = 1  # raised whenever the same weights, pictures and settings come to train to something else
CONFIG, LOG, LOCK = "config.json", "log.jsonl", ".lock"
_OURS = ("format", "name", "digest", "config", "num_timesteps", "dtype")  # in config.json; the rest is the callers'


def content_hash(
    source_digest: str,
    schedule: NoiseSchedule,
    images: ImageSet,
    prior_images: ImageSet | None,
    config: TrainConfig,
    dtype: torch.dtype,
) -> str:
    """What a run is: sha256 hex over the weights, the pictures and every setting that changes the trained weights.

    Also over what the model predicts, which the same file can be told either way, and the captions as they are trained
    on, as the subject's name decides what in them stands for it. `dtype`: what `precision` came to on the device.
    InputError: a caption that does not name the subject.
    """
    parts = {
        "recipe": RECIPE,
        "weights": source_digest,
        "predicts": schedule.prediction_type,
        "schedule": hashlib.sha256(schedule.alphas_cumprod.cpu().float().numpy().tobytes()).hexdigest(),
        "images": images.digest,
        "captions": subject_captions(images, config),
        "prior_images": prior_images.digest if prior_images else "",
        "settings": {**config.identity(), "precision": str(dtype)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class RunFolder:
    """A run's folder. `open_new` and `open_existing` check and refuse, and write nothing until `start`."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @staticmethod
    def open_new(path: str | Path, name: str) -> RunFolder:
        """A folder for a new run. InputError: it holds a run or other files, or cannot be written."""
        path = Path(path)
        found = _visible(path)
        if CONFIG in found and not _never_stepped(path):
            raise InputError(
                f"{path} already holds a run: choose another output folder, or go on with `apt-train resume {path}`."
            )
        if found and CONFIG not in found:
            raise InputError(f"{path} is not empty and holds no run: choose an empty or a new output folder.")
        for stem in (name, embedding_stem(name)):
            check_file_name(f"{stem}.safetensors")
        check_writable(path)
        return RunFolder(path, name)

    @staticmethod
    def open_existing(path: str | Path, name: str) -> RunFolder:
        """The folder of a run to go on with. InputError: it holds none, or cannot be written."""
        path = Path(path)
        read_config(path)
        check_writable(path)
        folder = RunFolder(path, name)
        if folder.snapshots.is_symlink():
            raise InputError(f"{folder.snapshots} is a link: put the folder itself in its place, then resume.")
        return folder

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def lora(self) -> Path:
        return self.path / f"{self.name}.safetensors"

    @property
    def embedding(self) -> Path:
        return self.path / f"{embedding_stem(self.name)}.safetensors"

    def config(self) -> TrainConfig:
        """The settings that the run was last trained with."""
        return TrainConfig.from_dict(read_config(self.path)["config"])

    def record(self) -> dict[str, Any]:
        """What callers have had kept beside the settings."""
        return {name: value for name, value in read_config(self.path).items() if name not in _OURS}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block no other process trains in this folder, which is made if it is not there yet.

        What killed writers have left half done in it is removed first.
        The lock is the system's, so it goes with a process that is killed. InputError: another one holds it.
        """
        self._make()
        lock = FileLock(self.path / LOCK, timeout=1)  # a scanner may hold a lock file that was just let go
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"{self.path} is being trained in by another process: wait for it, or end it.") from None
        except (OSError, NotImplementedError):  # some network file systems have no locks
            pass
        sweep(self.path, alone=lock.is_locked)
        for folder in (self.snapshots, self.previews):
            if not folder.is_symlink():
                sweep(folder, alone=lock.is_locked)
        try:
            yield
        finally:
            lock.release()

    def check_same_run(self, digest: str, config: TrainConfig, dtype: torch.dtype) -> None:
        """Refuse to go on with other weights, pictures or settings than the run began with, naming what differs."""
        saved, before = read_config(self.path), self.config()
        if before.steps != config.steps and config.reads_total_steps:
            raise InputError(
                f"{self.path} was planned for {before.steps} steps and its schedule reads the total, so it cannot be "
                f"continued to {config.steps}: keep the number, or train anew with a constant schedule."
            )
        if saved["dtype"] != str(dtype):
            raise InputError(
                f"{self.path} was trained in {saved['dtype']}, and this would go on in {dtype}: go on on the same kind "
                "of device, with the same precision."
            )
        if saved["digest"] != digest:
            raise InputError(
                f"{self.path} holds a run of {_difference(before.identity(), config.identity())}: "
                "give what it began with, or choose another output folder."
            )

    def start(self, digest: str, config: TrainConfig, record: Mapping[str, Any]) -> None:
        """Write `config.json`; `record`: what the caller wants kept beside the settings."""
        content = {"format": FORMAT, "name": self.name, "digest": digest, "config": config.to_dict(), **record}
        write_text(self.path / CONFIG, json.dumps(content, indent=1))

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path} could not be made ({error.strerror}): choose another output folder."
            ) from error

    def cut_log(self, step: int, *, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Cut `log.jsonl` back to `step` steps (what came after them was not saved); the lines that stay.

        `without`: fields that go, because what follows could not be compared with them.
        """
        kept = (line for line in read_log(self.path) if line["step"] <= step)
        lines = [{name: value for name, value in line.items() if name not in without} for line in kept]
        write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def add_drift(self, step: int, drift: Mapping[str, float]) -> None:
        """Put what was measured late into the line of its step; all other lines stay as they are."""
        lines = (self.path / LOG).read_text(encoding="utf-8").splitlines()
        for at, line in enumerate(lines):
            if _step_of(line) == step:
                lines[at] = json.dumps({**json.loads(line), "drift": dict(drift)})
        write_text(self.path / LOG, "".join(line + "\n" for line in lines))

    def log(self, event: StepEvent) -> None:
        """Append a step to `log.jsonl`."""
        try:
            with patiently(open, self.path / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(event.log_line()) + "\n")
        except OSError as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror).lower()
            raise InputError(
                f"{LOG} could not be written to {self.path} ({what}): free some space, then resume."
            ) from error


def step_folder(snapshots: Path, step: int) -> Path:
    """A snapshot's folder."""
    return snapshots / f"step_{step:06d}"


def snapshot_steps(path: Path) -> list[int]:
    """The steps that a run's folder has a snapshot of, rising."""
    names = [item.name.removeprefix("step_") for item in (path / "snapshots").glob("step_*") if item.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _never_stepped(path: Path) -> bool:
    """A run that ended before its first step has left nothing that anyone could miss."""
    return _visible(path) == {CONFIG, LOG} and (path / LOG).stat().st_size == 0


def _visible(path: Path) -> set[str]:
    """The names of all but what a file browser leaves, or a writer that was killed."""
    try:
        names = {item.name for item in path.iterdir()} if path.is_dir() else set()
        return {name for name in names if not name.startswith(".") and name not in ("desktop.ini", "Thumbs.db")}
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): choose another output folder.") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """A run folder's `config.json`. InputError: there is none, or it is not one of ours."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise InputError(f"{path} holds no run ({CONFIG} is missing): give the folder that a run was written to.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): restore it, or train anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not of a format this version reads: use the version that wrote it.")
    return content


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `log.jsonl`, one per step; a last line cut short by a crash is left out."""
    file = Path(path) / LOG
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, the first setting that differs; equal settings mean other weights or pictures."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            return _difference(old, new)
        if old != new:
            return f"other settings ({key} was {old!r}, now {new!r})"
    return "another checkpoint, other pictures, captions or masks"

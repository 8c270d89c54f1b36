"""Ways in which a run's folder may be damaged, each a function of the folder: its settings, its log, its files.

The folder is one of `synthetic_run.write_run`, with a log and a complete `config.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]
VALUES = [
    None, True, -1, 0, 1.5, 10**9, 10**12, 10**400, float("nan"), float("inf"), "7", "", [], [1], {}, {"a": 1},
    "\ud800", 1e308,
]  # fmt: skip


def setting(*names: str, value: Any) -> Damage:
    """`config.json` with one of its values replaced."""

    def damage(folder: Path) -> None:
        values = whole = json.loads((folder / "config.json").read_text())
        for name in names[:-1]:
            values = values[name]
        values[names[-1]] = value
        (folder / "config.json").write_text(json.dumps(whole))

    return damage


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else than a file under a file's name."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


LINE = {
    "step": 31, "loss": 0.5, "denoising": 0.25, "stabilization": None, "alignment": 0.125, "grad_norm": 1.0,
    "lr": 1e-4, "timestep": [7], "gamma": [0.5] * 5,
}  # fmt: skip


def line(**changes: Any) -> bytes:
    return json.dumps({**LINE, **changes}).encode() + b"\n"


def added(data: bytes) -> Damage:
    """At the end of the log."""
    return lambda folder: (folder / "log.jsonl").write_bytes((folder / "log.jsonl").read_bytes() + data)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


FILES = {
    "empty": lambda name: content(name, b""),
    "zeros": lambda name: content(name, b"\0" * 100_000),
    "no text": lambda name: content(name, b"\xff\xfe{}"),
    "a list": lambda name: content(name, b"[1, 2]\n"),
    "a number": lambda name: content(name, b"7\n"),
    "NaN": lambda name: content(name, b"NaN\n"),
    "nested": lambda name: content(name, b"[" * 200_000),
    "nested settings": lambda name: content(name, b'{"a":' * 100_000),
    "many digits": lambda name: content(name, b"1" * 200_000),
    "missing": lambda name: instead(name, lambda path: None),
    "a folder": lambda name: instead(name, Path.mkdir),
    "a pipe": lambda name: instead(name, os.mkfifo),
    "a link to itself": lambda name: instead(name, lambda path: path.symlink_to(path.name)),
    "a link to nothing": lambda name: instead(name, lambda path: path.symlink_to("nothing")),
    "a link to a device": lambda name: instead(name, lambda path: path.symlink_to("/dev/zero")),
    "a terabyte": lambda name: instead(name, sparse),
}
SETTINGS = [("config",), ("config", "steps"), ("config", "apt"), ("config", "apt", "bins"), ("num_timesteps",)]
FIELDS = ["step", "loss", "denoising", "stabilization", "gamma", "drift"]
DAMAGES: dict[str, Damage] = {
    **{f"{name}: {kind}": make(name) for name in ("config.json", "log.jsonl") for kind, make in FILES.items()},
    **{f"{'.'.join(names)} is {value!r:.12}": setting(*names, value=value) for names in SETTINGS for value in VALUES},
    **{f"a line's {name} is {value!r:.12}": added(line(**{name: value})) for name in FIELDS for value in VALUES},
    **{f"a line's gamma holds {value!r:.12}": added(line(gamma=[value] * 5)) for value in VALUES},
    **{f"a line's drift ratio is {value!r:.12}": added(line(drift={"ratio": value})) for value in VALUES},
    "a line cut short": added(line()[:30]),
    "a line of zeros": added(b"\0" * 5000 + b"\n" + line()),
}

"""What a training has left in the host's folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from .server import Host, Result
from .workflows import Node


def runs(host: Host) -> set[Path]:
    folder = host.folder / "output" / "apt_train"
    return set(folder.iterdir()) if folder.exists() else set()


def new_run(host: Host, act: Callable[[], Any]) -> Path:
    """The one run folder that `act` makes."""
    before = runs(host)
    act()
    (made,) = runs(host) - before
    return made


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def config_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["config"]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "snapshots" / f"step_{step:06d}" / "my_toy.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def closest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def pixels(host: Host, entry: dict[str, str]) -> np.ndarray:
    return np.asarray(host.image(entry), dtype=np.float64)


def shown_text(result: Result, node: Node) -> str:
    return result.outputs[node.id]["text"][0]

"""The three folders of the host that the pack writes to, where LoRAs may lie,, and paths that stay inside them."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from ...apt_train.errors import InputError

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")  # a run's folder by its name


def runs_folder() -> Path:
    """Where runs live: output/apt_train."""
    return Path(folder_paths.get_output_directory()) / "apt_train"


def loras_folder() -> Path:
    """Where finished LoRAs go, and the host's loaders look: output/loras."""
    return Path(folder_paths.get_output_directory()) / "loras"


def lora_folders() -> list[Path]:
    """Every folder that the host's loaders look for LoRAs in."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("loras")]


def embeddings_folder() -> Path:
    """The host's first embeddings folder. InputError: it has none."""
    folders = folder_paths.get_folder_paths("embeddings")
    if not folders:
        raise InputError("ComfyUI has no folder for embeddings: add one (models/embeddings), or train in word mode.")
    return Path(folders[0])


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a plain file name."""
    assert name and Path(name).name == name and name not in (".", ".."), name
    return folder / name

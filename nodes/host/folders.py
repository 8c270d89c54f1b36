"""The folders of the host that the pack writes to, those where LoRAs may lie, and those of pictures that it may read.

Whoever reaches the host may queue a prompt. So where it answers other machines than its own, pictures are read from its
own folders alone, as its Load Image does, and from those that the environment names.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import folder_paths

from ...apt_train.errors import InputError
from ...apt_train.paths import expanded

ALLOWED = "APT_TRAIN_FOLDERS"  # environment: further folders, separated as in PATH


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


def input_folders() -> list[str]:
    """The folders inside the host's input folder, at any depth, with / between their parts."""
    return folder_paths.get_input_subfolders()


def picture_folder(given: str) -> Path:
    """A folder as the user names it: by its whole path, or by its place in the host's input folder.

    `~` is put in, and `[output]` or `[temp]` at the end mean that folder of the host, as in Load Image.
    InputError: no folder can have that path, or this host may not read it.
    """
    from comfy.cli_args import args

    name, home = folder_paths.annotated_filepath(given.strip())
    path = Path(home or folder_paths.get_input_directory()) / expanded(name.strip(), "path")
    place = Path(os.path.abspath(path))
    if not _is_own(place) and answers_others(args.listen):
        raise InputError(
            f"path is {given}, outside the folders of a ComfyUI that answers other machines: put the pictures into its "
            f"input folder, or name theirs in {ALLOWED}."
        )
    return place


def answers_others(listen: str) -> bool:
    """Whether a host that listens there can be reached from another machine."""
    return any(not _is_loopback(address.strip()) for address in listen.split(","))


def _is_own(place: Path) -> bool:
    """Whether a folder lies in one of the host's own, or of those allowed, also after its links are followed."""
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    allowed = [expanded(path) for path in os.environ.get(ALLOWED, "").split(os.pathsep) if path.strip()]
    real = place.resolve()
    return any(real.is_relative_to(Path(folder).resolve()) for folder in (*own, *allowed))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"

"""The host's folders: those the pack writes to, those that may hold LoRAs, and those it may read pictures from.

Anyone who can reach the host can queue a prompt. So a host that accepts connections from other machines reads pictures
only from its own folders, like its Load Image, and from those that the environment allows.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

import folder_paths

from ...apt_train.errors import InputError
from ...apt_train.paths import expanded

ALLOWED = "APT_TRAIN_FOLDERS"  # environment variable: further folders, separated as in PATH


def runs_folder() -> Path:
    """The folder of runs: output/apt_train."""
    return Path(folder_paths.get_output_directory()) / "apt_train"


def loras_folder() -> Path:
    """The folder of finished LoRAs, where the host's loaders look: output/loras."""
    return Path(folder_paths.get_output_directory()) / "loras"


def lora_folders() -> list[Path]:
    """Every folder in which the host's loaders look for LoRAs."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("loras")]


def embeddings_folder() -> Path:
    """The first of the host's embeddings folders that can be written to, else the first. InputError: it has none."""
    folders = folder_paths.get_folder_paths("embeddings")
    if not folders:
        raise InputError("ComfyUI has no folder for embeddings: add one (models/embeddings), or train in word mode.")
    return Path(next((folder for folder in folders if os.access(folder, os.W_OK)), folders[0]))


def words_named(stem: str) -> list[Path]:
    """Every learned word of this name, in whatever folder: a prompt finds one of them, and nobody knows which."""
    named = [name for name in folder_paths.get_filename_list("embeddings") if Path(name).stem == stem]
    return [Path(path) for name in named if (path := folder_paths.get_full_path("embeddings", name))]


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a plain file name."""
    assert name and Path(name).name == name and name not in (".", ".."), name
    return folder / name


def input_folders() -> list[str]:
    """The folders inside the host's input folder, at any depth, as paths with /."""
    return folder_paths.get_input_subfolders()


def picture_folder(given: str) -> Path:
    """A folder as the user names it: by its full path, or relative to the host's input folder.

    `~` is expanded, and a trailing `[output]` or `[temp]` means that folder of the host, as in Load Image. Quotes
    around a path, as Windows copies it, are no part of it.
    InputError: an impossible path, or one that this host may not read.
    """
    from comfy.cli_args import args

    given = re.sub(r'^"(.*)"$', r"\1", given.strip())
    name, home = folder_paths.annotated_filepath(given)
    path = Path(home or folder_paths.get_input_directory()) / os.path.expanduser(name.strip())
    place, guarded = Path(os.path.abspath(path)), answers_others(args.listen)
    foreign = InputError(
        f"path is {given}, outside the folders of a ComfyUI that answers other machines: put the pictures into its "
        f"input folder, or name theirs in {ALLOWED}."
    )
    if guarded and not _is_own(place):  # by name first: Windows logs in to the server of a path that is looked at
        raise foreign
    expanded(name.strip(), "path")
    if guarded and not _is_own(place.resolve()):
        raise foreign
    return place


def answers_others(listen: str) -> bool:
    """Whether a host that listens there can be reached from another machine."""
    return any(not _is_loopback(address.strip()) for address in listen.split(","))


def _is_own(place: Path) -> bool:
    """Whether a folder is by its path inside one of the host's own or the allowed ones, as named or links resolved."""
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    allowed = [expanded(path) for path in os.environ.get(ALLOWED, "").split(os.pathsep) if path.strip()]
    folders = [Path(os.path.abspath(folder)) for folder in (*own, *allowed)]
    return any(place.is_relative_to(folder) or place.is_relative_to(folder.resolve()) for folder in folders)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"

"""Finds the weight files of a diffusers part: one `.safetensors`, or a complete set of shards; never a pickle."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from ...disk.json_file import AGAIN, place, read_json_object, short_name
from ...disk.tensor_file import open_tensor_file
from ...errors import InputError
from .config_check import Wrong, mapping, text

_SHARD = re.compile(r"(.*model.*)-(\d{1,6})-of-(\d{1,6})\.safetensors$")
_MOST_TENSORS = 100_000


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files in the same order on every system, without hidden ones of systems and editors (`._x`, `.DS_Store`)."""
    found = {path.relative_to(folder).parts: path for path in folder.glob(pattern) if path.is_file()}
    return [found[parts] for parts in sorted(found) if not any(name.startswith(".") for name in parts)]


def weight_files(part: Path) -> list[Path]:
    """The part's safetensors: a single file if there is one, else shards. A plain one comes before one of `fp16`."""
    files = visible(part, "*model*.safetensors")
    shards = [path for path in files if _SHARD.match(path.name)]
    single = sorted(
        (path for path in files if path not in shards and re.search(r"model\..*safetensors$", path.name)),
        key=lambda path: (path.name.count("."), path.name),
    )
    if single:
        return single[:1]
    if shards or visible(part, "*.safetensors.index*.json"):
        return _all_shards(part, shards)
    if pickles := [*visible(part, "*.bin"), *visible(part, "*.ckpt")]:
        raise InputError(
            f"{part.parent.name}/{part.name} holds {short_name(pickles[0].name)} only, a pickle, which can run code "
            "when it is opened: get the model's .safetensors files instead."
        )
    raise InputError(f"{part} holds no .safetensors weights: the folder is incomplete, download or copy it again.")


def _all_shards(part: Path, shards: list[Path]) -> list[Path]:
    """The first complete set of shards. InputError names the first missing file."""
    sets = {(found[1], int(found[3])) for path in shards if (found := _SHARD.match(path.name))}
    missing = ""
    for stem, total in sorted(sets):
        wanted = [f"{stem}-{number:05}-of-{total:05}.safetensors" for number in range(1, min(total, 1000) + 1)]
        lacking = [name for name in wanted if not (part / name).is_file()]
        if not lacking:
            return [part / name for name in wanted]
        missing = missing or f"{lacking[0]}, a part of its weights"
    if not missing:
        named = _named_by_index(part)
        absent = [name for name in named if Path(name).name != name or not (part / name).is_file()]
        if named and not absent:
            return [part / name for name in named]
        missing = f"{absent[0]}, which its index names" if absent else "its weights"
    raise InputError(f"{part.parent.name}/{part.name} lacks {missing}: {AGAIN}.")


def _named_by_index(part: Path) -> list[str]:
    """The shards named by the part's index, as plain file names."""
    path = visible(part, "*.safetensors.index*.json")[0]
    names = read_json_object(path, 1 << 24).get("weight_map")
    try:
        return sorted({short_name(name) for name in mapping(text(), _MOST_TENSORS)(names).values()})
    except Wrong as wrong:
        raise InputError(f"{place(path)} has a weight_map that is not {wrong}: {AGAIN}.") from None


def load_part(part: Path) -> dict[str, Tensor]:
    """All tensors of the part, as views of its files."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(part):
        file = open_tensor_file(path)
        tensors.update(file.load(file.shapes))
    return tensors

"""One safetensors file: its header read and checked by hand, its tensors mapped into memory on demand.

In: what the container itself can tell (empty, cut short, not safetensors at all). Not in: what the tensors mean;
that is `sniff` and the readers of each layout.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
MAX_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header has been read: names, shapes and metadata are known, no tensor is loaded."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors whose name starts with `prefix`, by the rest of the name."""
        return {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors as views of the memory-mapped file; pages are read when first touched."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as opened:
                return {name: opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise InputError(f"{self.path.name} is damaged ({error}): download or copy it again.") from None

    def load_under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by the rest of the name."""
        loaded = self.load(name for name in self.shapes if name.startswith(prefix))
        return {name[len(prefix) :]: tensor for name, tensor in loaded.items()}


def open_tensor_file(path: Path) -> TensorFile:
    """Read the header. InputError: missing, empty, a pickle, cut short, or no safetensors file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path.")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path.name} is empty (0 bytes): download or copy it again.")
    _refuse_by_suffix(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        plausible = len(start) == 8 and length <= min(size - 8, MAX_HEADER)
        raw = file.read(length) if plausible else b""
    if not plausible:
        _refuse_by_content(path, start)
    header = _parse_header(path, raw)
    metadata = header.pop("__metadata__", None) or {}
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < needed:
        raise InputError(f"{path.name} is cut short ({size} of {needed} bytes): download or copy it again.")
    return TensorFile(path, {name: tuple(entry["shape"]) for name, entry in header.items()}, metadata)


def _refuse_by_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        _refuse_pickle(path)
    if suffix == ".gguf":
        raise InputError(
            f"{path.name} is a quantised GGUF file, which cannot be trained: give the model as .safetensors."
        )
    if suffix != ".safetensors":
        raise InputError(f"{path.name} is no .safetensors file: give a .safetensors checkpoint or a diffusers folder.")


def _refuse_by_content(path: Path, start: bytes) -> None:
    """Say what a file is whose first 8 bytes are no length of a safetensors header that fits into it."""
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        _refuse_pickle(path)
    if start.startswith(b"version "):
        raise InputError(
            f"{path.name} is a Git LFS pointer, not the model itself: fetch the model with `git lfs pull`."
        )
    if start.lstrip()[:1] == b"<":
        raise InputError(f"{path.name} is a web page, not a model: download the model itself.")
    raise InputError(f"{path.name} is cut short inside its header, or no safetensors file: download or copy it again.")


def _refuse_pickle(path: Path) -> None:
    raise InputError(
        f"{path.name} is a pickle, which can run code when it is opened: give the model as .safetensors instead."
    )


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        for name, entry in header.items():
            if name != "__metadata__":
                _ = entry["data_offsets"][1], entry["shape"]  # raises where the layout is foreign
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise InputError(
            f"{path.name} is no safetensors file (its header is unreadable): download or copy it again."
        ) from None
    return header


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The floating type that most of the elements have, widened where torch cannot compute in it (float8, float64)."""
    elements: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(elements, key=lambda dtype: elements[dtype], default=torch.float32)
    if most.itemsize == 1:
        return torch.bfloat16
    return most if most in (torch.float16, torch.bfloat16) else torch.float32


def sha256_of_file(path: Path, chunk: int = 1 << 24) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(chunk):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_files(folder: Path, files: Iterable[Path]) -> str:
    """One digest over several files of a folder: their names inside it and contents, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()

"""One safetensors file: the header is read and checked here, tensors are mapped into memory on demand.

In: faults of the container itself (empty, truncated, not safetensors). Not in: what the tensors mean (`sniff` and the
readers of each layout).
"""

from __future__ import annotations

import codecs
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from .json_file import AGAIN, is_list, is_object, kind_of, parse_json, shown, shown_error

SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
MAX_HEADER = 10_000_000  # bytes; the format allows ten times as many, whose JSON could take gigabytes of memory
MOST_LETTERS = 500  # in a tensor's name
_PICKLE = "is a pickle, which can run code when it is opened: give the model as .safetensors instead."
_GGUF = "is a quantised GGUF file, which cannot be trained: give the model as .safetensors."
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file after reading its header: names, shapes and metadata are known, no tensor is loaded."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    size: int  # bytes the file has according to its header

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors whose name starts with `prefix`, keyed by the rest of the name."""
        return {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors as views of the memory-mapped file; pages are read on first access."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as opened:
                return {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, ValueError, TypeError, OverflowError, AttributeError) as error:
            raise InputError(f"{self.path.name} is damaged ({shown_error(error)}): {AGAIN}.") from None

    def load_under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, keyed by the rest of the name."""
        loaded = self.load(name for name in self.shapes if name.startswith(prefix))
        return {name[len(prefix) :]: tensor for name, tensor in loaded.items()}


def open_tensor_file(path: Path) -> TensorFile:
    """Read the header. InputError: missing, empty, a pickle, truncated, or not a safetensors file."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: check the path.")
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
    shapes, metadata, tensor_bytes = _parse_header(path, raw)
    if size < (needed := 8 + length + tensor_bytes):
        raise InputError(f"{path.name} is cut short ({size} of {needed} bytes): {AGAIN}.")
    return TensorFile(path, shapes, metadata, needed)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, copied into memory, and the metadata of an untrusted file. InputError: as in `open_tensor_file`."""
    file = open_tensor_file(path)
    return {name: tensor.clone() for name, tensor in file.load(file.shapes).items()}, file.metadata


def _refuse_by_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        raise InputError(f"{path.name} {_PICKLE}")
    if suffix == ".gguf":
        raise InputError(f"{path.name} {_GGUF}")
    if suffix not in SUFFIXES:
        raise InputError(f"{path.name} is not a .safetensors file: give one, or for a model its diffusers folder.")


def _refuse_by_content(path: Path, start: bytes) -> None:
    """Identify a file whose first 8 bytes cannot be the length of its safetensors header."""
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        raise InputError(f"{path.name} {_PICKLE}")
    if start.startswith(b"GGUF"):
        raise InputError(f"{path.name} {_GGUF}")
    if start.startswith(b"version "):
        raise InputError(
            f"{path.name} is a Git LFS pointer, not the model itself: fetch the model with `git lfs pull`."
        )
    words = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if words[:1] == b"<":
        raise InputError(f"{path.name} is a web page, not a model: download the model itself.")
    if len(start) == 8 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in words):
        raise InputError(f"{path.name} is a text, a site's error message perhaps: download the model itself.")
    if MAX_HEADER < (length := int.from_bytes(start, "little")) <= path.stat().st_size - 8:
        raise InputError(f"{path.name} has a header of {length} bytes, more than {MAX_HEADER}: {AGAIN}.")
    raise InputError(f"{path.name} is cut short inside its header, or no safetensors file: {AGAIN}.")


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, tuple[int, ...]], dict[str, str], int]:
    """Shapes, metadata and the total bytes of the tensors, which must be contiguous."""
    try:
        header = parse_json(raw)
        if not is_object(header):
            raise ValueError(f"it is {kind_of(header)} instead of an object")
        metadata = _metadata(header.pop("__metadata__", None))
        places = {name: _entry(name, entry) for name, entry in header.items()}
        end = 0
        for name, (_, first, last) in sorted(places.items(), key=lambda item: item[1][1:]):
            if first != end:
                raise ValueError(f"{shown(name)} begins at byte {first} where the one before ends at {end}")
            end = last
    except ValueError as error:
        raise InputError(
            f"{path.name} is not a safetensors file (its header is unreadable: {shown_error(error)}): {AGAIN}."
        ) from None
    return {name: shape for name, (shape, _, _) in places.items()}, metadata, end


def _metadata(values: Any) -> dict[str, str]:
    if values is None:
        return {}
    if not is_object(values) or any(type(value) is not str for value in values.values()):
        raise ValueError("its metadata are no texts")
    return values


def _entry(name: str, entry: Any) -> tuple[tuple[int, ...], int, int]:
    """A tensor's shape, first byte and end. ValueError: they are invalid or inconsistent."""
    if len(name) > MOST_LETTERS:
        raise ValueError(f"a tensor's name has {len(name)} characters")
    if not is_object(entry) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{shown(name)} lacks dtype, shape or data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in _BYTES:
        raise ValueError(f"{shown(name)} has the type {shown(kind)}, which cannot be read")
    if not _are_counts(shape) or len(shape) > 8:
        raise ValueError(f"{shown(name)} has the shape {shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown(name)} has the offsets {shown(offsets)}")
    if (taken := math.prod(shape) * _BYTES[kind]) != offsets[1] - offsets[0]:
        raise ValueError(f"{shown(name)} takes {shown(taken)} bytes by its shape, but has {shown(offsets)}")
    return tuple(shape), offsets[0], offsets[1]


def _are_counts(values: Any) -> TypeGuard[Sequence[int]]:
    return is_list(values) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def size_of(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, what: str) -> int:
    """One dimension of a tensor that a layout must have. InputError: the tensor is absent, or has too few axes."""
    if name not in shapes:
        raise InputError(f"{what} lacks {name}: it is damaged, so use another checkpoint.")
    if len(shapes[name]) <= axis:
        raise InputError(f"{what} has a {name} of shape {shapes[name]}: it is damaged, so use another checkpoint.")
    return shapes[name][axis]


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The most common floating dtype by element count; bfloat16 for float8, float32 for float64."""
    elements: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(elements, key=lambda dtype: elements[dtype], default=torch.float32)
    if most.itemsize == 1:
        return torch.bfloat16
    return most if most in (torch.float16, torch.bfloat16) else torch.float32


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_files(folder: Path, files: Iterable[Path]) -> str:
    """One digest over several files of a folder: their relative names and contents, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(set(files), key=lambda path: path.parts):  # Windows would sort paths without regard to case
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()

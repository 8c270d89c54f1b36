"""Writes safetensors files that are byte-for-byte equal whenever their content is.

In: writing, and verifying what was written. Not in: what the tensors mean (`export`), reading untrusted files. The
safetensors library's own writer varies the order of the metadata between processes and makes files readable only by
their owner, hence this one. Verification reads with the library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from .files import atomic_write

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, after verifying keys, shapes, dtypes, values and metadata.

    Tensors may be on any device and of any layout; the file stores them contiguous. A file that reads back differently
    never gets its final name.

    Raises:
        InputError: the disk is full, the folder is not writable, or what was read back differs.
    """
    name = Path(path).name

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(header_bytes(tensors, metadata))
            for tensor in _in_file_order(tensors).values():
                file.write(raw_bytes(tensor))
        fault = next(_differences(temporary, tensors, metadata or {}), None)
        if fault is not None:
            raise InputError(f"{name} reads back different from what was written (at {fault}): check the disk.")

    atomic_write(path, write)


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Everything before the data: the length (8 bytes), then JSON padded to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for key, tensor in _in_file_order(tensors).items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of the data region that `write_tensors` writes: the hash by which tools identify a LoRA."""
    digest = hashlib.sha256()
    for tensor in _in_file_order(tensors).values():
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide types first, so that every tensor is aligned; then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as a flat uint8 tensor, so that NaNs compare equal too."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's memory, row by row; without a copy where it is so on the CPU already."""
    return _bits(tensor).numpy().data


def _differences(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[str]:
    """What of a file is not as it was to be written."""
    with safe_open(str(path), framework="pt") as file:
        yield from sorted(set(file.keys()) ^ set(tensors))
        if (file.metadata() or {}) != dict(metadata):
            yield "the metadata"
        for key, tensor in tensors.items():
            found = file.get_tensor(key)
            same_kind = (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
            if not same_kind or not torch.equal(_bits(found), _bits(tensor)):
                yield key

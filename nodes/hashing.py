"""Sha256 of many tensors side by side, told piece by piece: gigabytes take a while, and Cancel has to be heard.

Not in: which tensors (`host.weights`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
AtPiece = Callable[[int, int], object]  # pieces done and all of them, before each one; what it raises ends the work


def tensor_hash(tensor: Tensor) -> str:
    """Of a plain tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    digest.update(tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hashes(things: Mapping[str, T], at_piece: AtPiece, hash_of: Callable[[T], str]) -> Iterator[tuple[str, str]]:
    """Names with the hex of what they stand for, in order. `hash_of` is called in threads."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
        try:
            waiting = [(name, pool.submit(hash_of, thing)) for name, thing in things.items()]
            for done, (name, digest) in enumerate(waiting):
                at_piece(done, len(waiting))
                yield name, digest.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def joined(found: Mapping[str, str]) -> str:
    """One hash of many, whatever their order."""
    return hashlib.sha256("".join(f"{name}={found[name]};" for name in sorted(found)).encode()).hexdigest()

"""SHA-256 of many tensors in parallel, with progress: gigabytes take a while, and Cancel has to work meanwhile.

Not in: which tensors (`host.weights`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from ..apt_train.disk.tensor_writer import raw_bytes

T = TypeVar("T")
AtPiece = Callable[[int, int], object]  # (pieces done, all pieces), called before each; if it raises, the work ends

# A host on Apple's GPU keeps models there, and torch ends the process when two threads use it.
_READING = threading.Lock()


def tensor_hash(tensor: Tensor) -> str:
    """The hash of a plain tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    with _READING:
        here = tensor.cpu()
    digest.update(raw_bytes(here))
    return digest.hexdigest()


def hashes(things: Mapping[str, T], at_piece: AtPiece, hash_of: Callable[[T], str]) -> Iterator[tuple[str, str]]:
    """Names with their hex digests, in order. `hash_of` is called in threads."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib releases the GIL
        try:
            waiting = [(name, pool.submit(hash_of, thing)) for name, thing in things.items()]
            for done, (name, digest) in enumerate(waiting):
                at_piece(done, len(waiting))
                yield name, digest.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def joined(found: Mapping[str, str]) -> str:
    """One hash of many, independent of their order."""
    return hashlib.sha256("".join(f"{name}={found[name]};" for name in sorted(found)).encode()).hexdigest()

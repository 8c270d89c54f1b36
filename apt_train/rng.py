"""Random draws keyed by their purpose, independent of what was drawn before.

Every draw has a generator seeded by a key such as (seed, step, index). A resumed run, a batch of 4, and four
accumulated batches of 1 therefore draw the same numbers. Generators live on the CPU, so that all devices draw alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Generator

import torch

_WITH_GENERATORS = ("cuda", "mps", "xpu")
_SEEDING = threading.RLock()  # the global generators are the process's: another thread's block would draw from ours


def derive_seed(*key: int | str) -> int:
    """Hash a key into a 63-bit seed; similar keys give unrelated seeds."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator for this key."""
    return torch.Generator().manual_seed(derive_seed(*key))


@contextlib.contextmanager
def seeded(*key: int | str, device: torch.device | str = "cpu") -> Generator[None]:
    """Seed torch's global generators inside the block (dropout, initialisation) and restore them afterwards."""
    device, seed = torch.device(device), derive_seed(*key)
    others = [device] if device.type in _WITH_GENERATORS else []
    with _SEEDING, torch.random.fork_rng(devices=others, device_type=device.type if others else "cuda"):
        torch.default_generator.manual_seed(seed)
        for other in others:
            module = torch.get_device_module(other)
            with getattr(module, "device", contextlib.nullcontext)(other):  # Apple's GPU is always the only one
                module.manual_seed(seed)
        yield

"""A disk cache of what many units share: the prior's pictures, trajectories and losses.

A file's name is a digest of everything that made it, so a changed prompt, model or library makes a new one. These files
are not committed. A unit's own figures are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_train.disk.files import atomic_write


def cached(folder: Path, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` gives for `key` (plain JSON values), made once per folder."""
    text = json.dumps({**key, "torch": torch.__version__}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        atomic_write(path, lambda temporary: save_file(tensors, temporary))
    return load_file(path)

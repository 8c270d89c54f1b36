"""`attention.safetensors`, where prior and tuned looked at the end of a run: the one reader and the one writer.

In: its format. Not in: taking the maps (`training.attention_probe`), painting them (`report.attention_tiles`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..disk.json_file import parse_json
from ..disk.tensor_file import read_tensors
from ..disk.tensor_writer import write_tensors
from ..errors import InputError

MOST_BYTES = 1 << 30  # a file far larger than any of ours would be read for long


@dataclass(frozen=True)
class AttentionMaps:
    """Cross-attention token by token on one picture."""

    prior: Tensor  # float32 (columns, h, w)
    tuned: Tensor  # the same
    labels: list[str]  # one per column
    image: Tensor | None = None  # the picture, uint8 (3, H, W)

    def __post_init__(self) -> None:
        assert self.prior.shape == self.tuned.shape and self.prior.ndim == 3
        assert len(self.labels) == len(self.prior) > 0, "a label per column"


def write_maps(path: Path, maps: AttentionMaps) -> None:
    tensors = {"prior": maps.prior, "tuned": maps.tuned}
    if maps.image is not None:
        tensors["image"] = maps.image
    write_tensors(path, tensors, {"labels": json.dumps(maps.labels)})


def read_maps(path: Path) -> AttentionMaps | None:
    """None where none were saved. InputError: the file is damaged, or none of ours."""
    if not path.exists():
        return None
    try:
        assert path.stat().st_size <= MOST_BYTES
        tensors, metadata = read_tensors(path)
        labels = [str(label) for label in parse_json(metadata["labels"].encode())]
        image = tensors["image"].to(torch.uint8) if "image" in tensors else None
        return AttentionMaps(tensors["prior"].float(), tensors["tuned"].float(), labels, image)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AssertionError):
        raise InputError(
            f"{path.name} is damaged or holds no attention maps: delete it and ask for the report again."
        ) from None

"""Reads and writes `attention.safetensors`: where the prior and the tuned model looked at the end of a run.

In: the format. Not in: making the maps (`training.attention_probe`), drawing them (`report.attention_tiles`).
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
from ..wording import printable

MOST_BYTES = 1 << 28  # larger files are not ours, and would take long to read
MOST_COLUMNS = 300  # columns read: nobody looks at more tokens, and they would take minutes to draw
MOST_SIDE, MOST_PICTURE = 512, 8192  # of a map, and of the picture in pixels; larger ones are not ours


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
    """The saved maps, at most `MOST_COLUMNS` columns; None if there are none. InputError: damaged or foreign."""
    if not path.exists():
        return None
    try:
        assert path.stat().st_size <= MOST_BYTES
        tensors, metadata = read_tensors(path)
        labels = [printable(label) for label in parse_json(metadata["labels"].encode())]
        prior, tuned, image = tensors["prior"], tensors["tuned"], tensors.get("image")
        assert _are_maps(prior) and _are_maps(tuned) and (image is None or _is_picture(image))
        AttentionMaps(prior, tuned, labels)  # checks that there is one label per column
        return AttentionMaps(_shown(prior), _shown(tuned), labels[:MOST_COLUMNS], image)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError):
        raise InputError(
            f"{path.name} is damaged or holds no attention maps: delete it and ask for the report again."
        ) from None


def _are_maps(maps: Tensor) -> bool:
    sides = maps.shape[1:]
    return maps.ndim == 3 and maps.is_floating_point() and 0 < min(sides) <= max(sides) <= MOST_SIDE


def _shown(maps: Tensor) -> Tensor:
    """The first columns, with non-finite values as 0."""
    return torch.nan_to_num(maps[:MOST_COLUMNS].float(), 0, 0, 0)


def _is_picture(image: Tensor) -> bool:
    is_colour = image.ndim == 3 and image.dtype == torch.uint8 and len(image) == 3
    return is_colour and 0 < min(image.shape) <= max(image.shape) <= MOST_PICTURE

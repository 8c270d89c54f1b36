"""What a run consists of: one hash that decides whether it can be resumed, and parts that tell what differs.

In: the hash, the parts as stored in config.json, comparing them with another run's. Not in: the folder (`folder`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..disk.json_file import is_list, is_object
from ..text.captions import subject_captions
from ..wording import listed

if TYPE_CHECKING:
    import torch

    from ..data.dataset import ImageSet
    from ..families.network import Process

RECIPE = 1  # raised whenever the same weights, pictures and settings would train to a different result
_LETTERS = 16  # kept of each digest: these only word a refusal and decide nothing
_PER_PICTURE = ("pictures", "captions", "masks")
_WORDS = {
    "weights": "another checkpoint or VAE",
    "predicts": "another checkpoint or prediction type ({before}, now {now})",
    "schedule": "another checkpoint or noise schedule",
    "pictures": "other pictures ({gone} missing, {new} new)",
    "captions": "other captions",
    "masks": "other masks",
    "prior_images": "other prior images",
}


@dataclass(frozen=True)
class Content:
    """What a run is made from. `weights`: the digest of the source weights."""

    weights: str
    schedule: Process
    images: ImageSet
    prior_images: ImageSet | None
    config: TrainConfig

    def hash(self, dtype: torch.dtype) -> str:
        """A run's identity: sha256 hex over the weights, the pictures and every setting that changes what is trained.

        It also covers what the model predicts, because that can be overridden, and the final captions, because the
        subject's name decides how they are read. `dtype`: what `precision` resolved to on the device. InputError: a
        caption does not name the subject.
        """
        parts = {
            **self._whole(),
            "recipe": RECIPE,
            "schedule": hashlib.sha256(self.schedule.fingerprint).hexdigest(),
            "images": self.images.digest,
            "captions": subject_captions(self.images, self.config),
            "settings": {**self.config.identity(), "precision": str(dtype)},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def parts(self) -> dict[str, Any]:
        """Digests of the weights, the schedule and the prior images, and of every picture, caption and mask."""
        contents = [image.content for image in self.images.images]
        captions = zip(subject_captions(self.images, self.config), self.images.images, strict=True)
        return {
            **self._whole(),
            "schedule": _digest(self.schedule.fingerprint),
            "pictures": [pixels.hex()[:_LETTERS] for pixels, _ in contents],
            "captions": [_digest(json.dumps([trained, image.caption]).encode()) for trained, image in captions],
            "masks": [mask.hex()[:_LETTERS] for _, mask in contents],  # empty if there is none
        }

    def _whole(self) -> dict[str, str]:
        """What the hash covers in the form in which it is compared."""
        prior = self.prior_images.digest if self.prior_images else ""
        return {"weights": self.weights, "predicts": self.schedule.prediction, "prior_images": prior}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_LETTERS]


def other_parts(before: Any, now: Mapping[str, Any]) -> list[str]:
    """The parts that differ, in words. Parts that one side lacks, as in files of an older version, are skipped."""
    if not is_object(before):
        return []
    plain = [name for name in _WORDS if name not in _PER_PICTURE and name in before and name in now]
    others = [_WORDS[name].format(before=before[name], now=now[name]) for name in plain if before[name] != now[name]]
    return [*others, *_other_pictures(before, now)]


def _other_pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Captions and masks are compared only for pictures that both runs have."""
    if not all(_is_list_of_texts(parts.get(name)) for parts in (before, now) for name in _PER_PICTURE):
        return []
    gone, new = (set(one["pictures"]) - set(other["pictures"]) for one, other in ((before, now), (now, before)))
    others: list[str] = []
    if gone or new or len(before["pictures"]) != len(now["pictures"]):
        others = [_WORDS["pictures"].format(gone=len(gone), new=len(new))]
    elif before["pictures"] != now["pictures"]:
        others = ["the same pictures under other names, which puts them in another order"]
    common = set(before["pictures"]) & set(now["pictures"])
    return others + [
        _WORDS[name] for name in ("captions", "masks") if _of(before, name, common) != _of(now, name, common)
    ]


def _of(parts: Mapping[str, Any], name: str, pictures: set[str]) -> set[tuple[str, str]]:
    return {pair for pair in zip(parts["pictures"], parts[name], strict=False) if pair[0] in pictures}


def _is_list_of_texts(value: Any) -> bool:
    return is_list(value) and all(isinstance(one, str) for one in value)


def difference(before: Any, now: Mapping[str, Any], settings: TrainConfig, others: TrainConfig) -> str:
    """How the run `now` differs from the run `before`, in words: parts, then settings."""
    found = [*other_parts(before, now), *_other_settings(settings.identity(), others.identity())]
    if not found and is_object(before) and before.keys() >= _WORDS.keys():
        return "other settings than its config.json says now"  # everything else is as it was
    return listed(found, most=len(found)) or "another checkpoint, other pictures, captions or masks"


def _other_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The first setting that differs, in words."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if is_object(old) and is_object(new) and old != new:
            return _other_settings(old, new)
        if old != new:
            return [f"other settings ({key} was {old!r}, now {new!r})"]
    return []

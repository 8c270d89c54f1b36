"""What a run is made of, part by part, so that a run that cannot go on can say which part is another.

In: the parts as they stand in config.json, and two of them compared. Not in: the one hash that decides (`folder`),
the settings, which config.json holds in full.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..disk.json_file import is_list, is_object
from ..text.captions import subject_captions

if TYPE_CHECKING:
    from ..data.dataset import ImageSet
    from ..families.network import Process

_LETTERS = 16  # of a digest: they are compared to word a refusal, and decide nothing
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


def content_parts(
    source_digest: str,
    schedule: Process,
    images: ImageSet,
    prior_images: ImageSet | None,
    config: TrainConfig,
) -> dict[str, Any]:
    """Digests of the weights, the schedule and the prior images, and of every picture, its caption and its mask."""
    contents = [image.content for image in images.images]
    captions = zip(subject_captions(images, config), images.images, strict=True)
    return {
        "weights": source_digest,
        "predicts": schedule.prediction,
        "schedule": _digest(schedule.fingerprint),
        "pictures": [pixels.hex()[:_LETTERS] for pixels, _ in contents],
        "captions": [_digest(json.dumps([trained, image.caption]).encode()) for trained, image in captions],
        "masks": [mask.hex()[:_LETTERS] for _, mask in contents],  # empty where there is none
        "prior_images": prior_images.digest if prior_images else "",
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_LETTERS]


def other_parts(before: Any, now: Mapping[str, Any] | None) -> list[str]:
    """In words, the parts that differ. Nothing where one side does not hold them, as in files of an older version."""
    if not is_object(before) or now is None:
        return []
    plain = [name for name in _WORDS if name not in _PER_PICTURE and name in before and name in now]
    others = [_WORDS[name].format(before=before[name], now=now[name]) for name in plain if before[name] != now[name]]
    return [*others, *_other_pictures(before, now)]


def _other_pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Captions and masks are compared for the pictures that both have."""
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

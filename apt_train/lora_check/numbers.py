"""A check-up as plain values, for JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from .findings import CheckUp
from .verdict import paragraphs


def as_dict(found: CheckUp) -> dict[str, Any]:
    """Everything that was measured or ignored."""
    placed = found.placement.placed
    return {
        "lora": found.lora.name,
        "model": found.source,
        "strength": found.recommendation.strength,
        "rule": found.recommendation.rule,
        "overfitted": found.recommendation.overfitted,
        "class_word": found.subject.class_word,
        "trigger": found.subject.trigger,
        "pictures": found.pictures,
        "strengths": [asdict(point) for point in found.points],
        "blocks": [asdict(block) for block in found.blocks],
        "file": {
            "dtype": found.lora.dtype,
            "kinds": sorted({item.kind for item in placed}),
            "layers": len(placed),
            "ranks": found.placement.ranks,
            "alphas": found.placement.alphas,
            "left_out": {
                "no_place": found.placement.unplaced,
                "unfit": found.placement.unfit,
                "broken": found.placement.broken,
                "unread": found.lora.unread,
            },
        },
        "prompts": {"subject": found.prompts.named, "unrelated": found.prompts.unrelated},
        "verdict": paragraphs(found),
    }


def as_json(found: CheckUp) -> str:
    """`as_dict` as text."""
    return json.dumps(as_dict(found), indent=1, ensure_ascii=False) + "\n"

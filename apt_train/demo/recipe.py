"""What the demo trains: the embedded model, its pictures, and one recipe for both methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import TrainConfig

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "drawn_world"
DEMO = ASSETS / "demo"


def recipe() -> dict[str, Any]:
    """The demo's settings and prompts: `assets/demo/recipe.json`."""
    return json.loads((DEMO / "recipe.json").read_text(encoding="utf-8"))


def demo_config(settings: dict[str, Any], method: str, *, steps: int | None) -> TrainConfig:
    """Both runs share one recipe and differ only in the method; DreamBooth's indicator is measured too."""
    recipe: dict[str, Any] = {**settings["recipe"], "class_word": settings["class_word"], "method": method}
    if steps is not None:
        recipe["steps"] = steps
    recipe["apt"] = {**recipe.get("apt", {}), "watch_indicator": True}
    return TrainConfig.from_dict(recipe)

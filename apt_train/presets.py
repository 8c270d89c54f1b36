"""Presets by name: a few settings each, and why. Data only; settings given by hand override a preset.

Each names the evidence or arithmetic for its values. What was set by hand is up to `console.options` and
the nodes. All presets are ours. A run's identity depends on the values, not on the preset's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .config import TrainConfig
from .errors import InputError
from .settings_field import flat_values


@dataclass(frozen=True)
class Preset:
    """`values`: settings by name. `why`: whom it is for, and what supports it."""

    name: str
    values: Mapping[str, Any]
    why: str

    @property
    def sets(self) -> str:
        """`steps 400, learning_rate 0.0002`; empty if it sets nothing."""
        return ", ".join(f"{setting} {shown(value)}" for setting, value in self.values.items())


PUBLISHED = "published"
_EVERY = (
    Preset(PUBLISHED, {}, "Sets nothing: the paper's values where it states them, elsewhere DCO's published recipe."),
    Preset(
        "quick look",
        {
            "steps": 400,
            "learning_rate": 2e-4,
            "embedding_learning_rate": 2e-5,
            "snapshot_every": 100,
            "preview_every": 100,
            "preview_steps": 15,
        },
        "A first look in minutes: a fifth of the steps at four times the learning rate. On a small model it reached "
        "91% of the whole run's likeness, and half as many images obeyed an unseen request (docs/benchmark/quick.md).",
    ),
    Preset(
        "strong likeness",
        {"temperature": 300.0, "adaptive_augmentation": False, "stabilization": False, "alignment": False},
        "(1 - gamma) alone at T = 300 came as close to the subject as DreamBooth and memorised less than half as much "
        "(docs/benchmark/beside.md, eighteen runs on a small model).",
    ),
    Preset(
        "low memory",
        {"gradient_checkpointing": True, "batch_size": 1, "base_storage": "int8"},
        "Saves activations and half of the frozen weights: 4.8 GiB for SDXL at 1024 pixels, 1.3 for SD1.5 at 512 "
        "(docs/memory.md, by arithmetic). The rounding costs no quality that can be seen on a small model "
        "(docs/benchmark/parts.md).",
    ),
    Preset(
        "style",
        {
            "method": "dreambooth",
            "preview_prompts": ("a {subject} of a lighthouse", "a {subject} of a cat on a sofa"),
            "unseen_prompt": "a {subject} of a robot on the moon",
        },
        "Nothing holds back, as every prompt should change (docs/recipes.md). Unmeasured.",
    ),
    Preset(
        "small pictures",
        {"temperature": 300.0, "augment_fill": "reflect", "alignment": False},
        "The benchmark's own recipe for a model of 64-pixel pictures (docs/benchmark.md): T = 300 and no alignment on "
        "six tuning subjects, mirrored borders on two.",
    ),
)
PRESETS = {preset.name: preset for preset in _EVERY}


def preset_named(text: str) -> Preset:
    """The preset of this name, where `-` may replace a space. InputError: there is none."""
    name = text.strip().lower().replace("-", " ")
    if name not in PRESETS:
        raise InputError(f"preset is {text!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def in_force(name: str, config: TrainConfig) -> str:
    """What a preset still determines in these settings: `temperature 300, stabilization off`, without manual overrides.

    Empty if that is nothing, or if there is no such preset.
    """
    values = flat_values(config)
    wanted = PRESETS[name].values.items() if name in PRESETS else ()
    return ", ".join(f"{setting} {shown(value)}" for setting, value in wanted if values[setting] == value)


def shown(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " / ".join(cast("tuple[str, ...]", value))
    return f"{value:g}" if isinstance(value, float) else str(value)

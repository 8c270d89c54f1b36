"""The named grids. Each was written down here, with its question in docs/log.md, before it was run."""

from __future__ import annotations

from typing import Any

from .grid import PRIOR, Grid, Variant, merged
from .world_subjects import TUNING, VERDICT

STEPS: dict[str, Any] = {"steps": 400, "output": {"snapshot_every": 50}}
PROBE_AT, SAMPLE_AT = (50, 100, 200, 300, 400), (100, 200, 400)

NONE: dict[str, Any] = {
    "adaptive_augmentation": False,
    "adaptive_loss_weight": False,
    "stabilization": False,
    "alignment": False,
}


def apt(*parts: str, **settings: Any) -> Variant:
    """APT with these parts alone (augment, weight, rs, aa) and these settings of theirs."""
    names = {
        "augment": "adaptive_augmentation",
        "weight": "adaptive_loss_weight",
        "rs": "stabilization",
        "aa": "alignment",
    }
    switches = {names[part]: True for part in parts}
    return Variant({"method": "apt", "apt": {**NONE, **switches, "balance_every": 0, **settings}})


FLOOR = {PRIOR: Variant({})}
DREAMBOOTH = {"dreambooth": Variant({"method": "dreambooth", "apt": {"watch_indicator": True}})}

METHODS: dict[str, Variant] = {
    **FLOOR,
    **DREAMBOOTH,
    "dreambooth+preservation": Variant({"method": "dreambooth"}, preservation=True),
    "dco": Variant({"method": "dco"}),
    "t-lora": Variant({"method": "tlora"}),
    "+ata": apt("augment", "weight", temperature="auto"),
    "+ata+rs": apt("augment", "weight", "rs", temperature="auto"),
    "apt": apt("augment", "weight", "rs", "aa", temperature="auto"),
}


def tuning(variants: dict[str, Variant], seeds: tuple[int, ...] = (0,)) -> Grid:
    """A sweep on the half of the subjects that the verdict does not use."""
    return Grid(
        subjects=tuple(look.name for look in TUNING),
        seeds=seeds,
        variants={**FLOOR, **DREAMBOOTH, **variants},
        probe_at=PROBE_AT,
        sample_at=SAMPLE_AT,
        share=0.5,
        recipe=STEPS,
    )


GRIDS: dict[str, Grid] = {
    # What does each part do alone, and which temperature lets the indicator do its work?
    "parts": tuning(
        {
            "ata, T 1000": apt("augment", "weight"),
            "ata, auto": apt("augment", "weight", temperature="auto"),
            "ata, auto, mask_fill": apt("augment", "weight", temperature="auto", mask_fill=True),
            "weight alone, auto": apt("weight", temperature="auto"),
            "augment alone, auto": apt("augment", temperature="auto"),
            "rs alone": apt("rs"),
            "aa alone": apt("aa"),
        }
    ),
    "verdict": Grid(
        subjects=tuple(look.name for look in VERDICT),
        seeds=(0, 1, 2),
        variants=METHODS,
        probe_at=PROBE_AT,
        sample_at=SAMPLE_AT,
        share=0.5,
        recipe=STEPS,
    ),
}

SHORT = Grid(
    subjects=(VERDICT[0].name, VERDICT[3].name),
    seeds=(0,),
    variants={name: METHODS[name] for name in (PRIOR, "dreambooth", "apt")},
    probe_at=(100, 200),
    sample_at=(100, 200),
    share=0.25,
    recipe=merged(STEPS, {"steps": 200, "output": {"snapshot_every": 100}}),
)

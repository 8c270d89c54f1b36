"""The named grids. Each was written down here, with its question in docs/log.md, before it was run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .grid import PRIOR, Grid, Variant, merged
from .world_subjects import TUNING, VERDICT, Look
from .world_task import SAMPLING_STEPS

STEPS: dict[str, Any] = {"steps": 400, "output": {"snapshot_every": 50}}
SAMPLE_AT = (50, 100, 200, 400)  # most of the learning is in the first quarter
LONG: dict[str, Any] = {**STEPS, "steps": 800}  # at 400 DreamBooth has not overfitted yet, nor (1 - gamma) arrived
SAMPLE_LONG = (*SAMPLE_AT, 800)
WORLD = f"drawn world, {SAMPLING_STEPS} steps"

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

RS, AA = {"dist_weight": 0.01}, {"attn_weight": 0.01}
TURNED = {"max_zoom": 1.0}  # what auto comes to at 64 px: turned by up to 15 degrees, as published, and not shrunk
BASELINES: dict[str, Variant] = {
    **FLOOR,
    **DREAMBOOTH,
    "dreambooth+preservation": Variant({"method": "dreambooth"}, preservation=True),
    "dco": Variant({"method": "dco"}),
    "t-lora": Variant({"method": "tlora"}),
}


# A small model's temperature and fill, see the embedded model's card. Its recipe also leaves AA out: `apt without aa`.
# For SDXL 1000 and a black fill are published.
SMALL_MODEL: dict[str, Any] = {"temperature": 300.0, "augment_fill": "reflect"}
PARTS = {"augmentation": "augment", "weight": "weight", "rs": "rs", "aa": "aa"}


def whole(recipe: dict[str, Any], *without: str) -> Variant:
    """All of APT as it is shipped, less these parts. `recipe`: its settings that differ.

    The regularisers' weights and the zoom are the shipped ones, written out: a unit is what it was made with.
    """
    parts = [part for name, part in PARTS.items() if name not in without]
    return apt(*parts, **{"max_zoom": "auto", **RS, **AA, **recipe})


def methods(recipe: dict[str, Any]) -> dict[str, Variant]:
    """The baselines at their published constants, all of APT, and APT less each of its parts."""
    return {**BASELINES, "apt": whole(recipe), **{f"apt without {part}": whole(recipe, part) for part in PARTS}}


# The verdict's rows: the baselines, all of APT, a small model's recipe, and the recipe less each of its parts.
METHODS = {
    **BASELINES,
    "apt": whole(SMALL_MODEL),
    "apt without aa": whole(SMALL_MODEL, "aa"),
    **{f"apt without aa, {p}": replace(whole(SMALL_MODEL, "aa", p), seeds=(0,)) for p in PARTS if p != "aa"},
}


def clipped(variant: Variant) -> Variant:
    """Gradients are clipped to a thousandth of the shipped norm. For AdamW that is a loss a thousand times as large."""
    tight = {"optimizer": {"max_grad_norm": 0.001, "epsilon": 1e-11}}
    return Variant(merged(variant.settings, tight), variant.preservation)


def rate(value: float) -> dict[str, Any]:
    """Of the LoRA and of the learned word, which have one rate here."""
    return {"optimizer": {"learning_rate": value, "embedding_learning_rate": value}}


def at_rate(value: float, variant: Variant) -> Variant:
    return Variant(merged(variant.settings, rate(value)))


FRAMED = WORLD + ", prior taught framed pictures"


def tuning(variants: dict[str, Variant], task: str = WORLD, steps: int = 400, looks: tuple[Look, ...] = TUNING) -> Grid:
    """A sweep on the half of the subjects that the verdict does not use, or some of them, one seed each."""
    measured_at = (*SAMPLE_AT, *range(800, steps + 1, 400))
    return Grid(
        subjects=tuple(look.name for look in looks),
        seeds=(0,),
        variants={**FLOOR, **DREAMBOOTH, **variants},
        probe_at=measured_at,
        sample_at=measured_at,
        share=0.5,
        recipe=merged(STEPS, {"steps": steps}),
        task=task,
    )


def verdict(variants: dict[str, Variant]) -> Grid:
    """On the half of the subjects that chose no constant, three seeds each unless a variant names its own."""
    return Grid(
        subjects=tuple(look.name for look in VERDICT),
        seeds=(0, 1, 2),
        variants=variants,
        probe_at=SAMPLE_LONG,
        sample_at=SAMPLE_LONG,
        share=0.5,
        recipe=LONG,
        task=WORLD,
    )


GRIDS: dict[str, Grid] = {
    # What does each part do alone, and which temperature lets the indicator do its work?
    "parts": tuning(
        {
            "weight, T 1000": apt("weight"),
            "weight, auto": apt("weight", temperature="auto"),
            "ata, auto": apt("augment", "weight", temperature="auto"),
            "rs": apt("rs"),
            "aa": apt("aa"),
            "weight, T 1000 + flip": apt("augment", "weight", augment_kinds=["flip"]),
            "weight, T 1000 + rs + aa": apt("weight", "rs", "aa"),
        }
    ),
    # How strong may the regularisers be beside a data term that (1 - gamma) has made small, and on which layers?
    "weights": tuning(
        {
            "weight": apt("weight"),
            "weight + rs .1": apt("weight", "rs", dist_weight=0.1),
            "weight + rs .01": apt("weight", "rs", dist_weight=0.01),
            "weight + rs .1, all layers": apt("weight", "rs", dist_weight=0.1, dist_layers="all"),
            "weight + aa .1": apt("weight", "aa", attn_weight=0.1),
            "weight + aa .01": apt("weight", "aa", attn_weight=0.01),
            "weight + rs .1 + aa .1": apt("weight", "rs", "aa", dist_weight=0.1, attn_weight=0.1),
            "weight + rs .01 + aa .01": apt("weight", "rs", "aa", **RS, **AA),
        }
    ),
    # (1 - gamma) learns slowly: where does it come to with three times the steps, and DreamBooth with it?
    "longer": tuning(
        {
            "weight": apt("weight"),
            "weight + rs .01 + aa .01": apt("weight", "rs", "aa", dist_weight=0.01, attn_weight=0.01),
            "rs": apt("rs"),
        },
        steps=1200,
    ),
    # T = 1000 all but stops near DreamBooth's best, auto never: what lies between them?
    "temperature": tuning({f"weight, T {T}": apt("weight", temperature=float(T)) for T in (100, 300, 1000)}, steps=800),
    # Does the published augmentation harm, or does the drawn world's prior not know its pictures? The same on a prior
    # that does: --model, made by benchmarks/world/framed.py.
    "framed": tuning(
        {
            "weight, T 1000": apt("weight"),
            "ata, T 1000": apt("augment", "weight"),
            "ata, auto": apt("augment", "weight", temperature="auto"),
            "augment, auto": apt("augment", temperature="auto"),
        },
        task=FRAMED,
    ),
    # The paper's ablation, each part added to the last, where the prior knows the augmented pictures: also --model.
    "ablation": tuning(
        {
            "weight": apt("weight", temperature=300.0),
            "ata": apt("augment", "weight", temperature=300.0),
            "ata, fill masked": apt("augment", "weight", temperature=300.0, mask_fill=True),
            "ata + rs": apt("augment", "weight", "rs", temperature=300.0, **RS),
            "ata + rs + aa": apt("augment", "weight", "rs", "aa", temperature=300.0, **RS, **AA),
            "ata + rs + aa, fill masked": apt(
                "augment", "weight", "rs", "aa", temperature=300.0, mask_fill=True, **RS, **AA
            ),
        },
        task=FRAMED,
        steps=800,
    ),
    # How often may a picture be augmented where the prior knows such pictures? 0 is `weight`, .8 the published `ata`,
    # both as in `ablation`: also --model.
    "p_max": tuning(
        {
            "weight": apt("weight", temperature=300.0),
            "ata, p_max .1": apt("augment", "weight", temperature=300.0, p_max=0.1),
            "ata, p_max .4": apt("augment", "weight", temperature=300.0, p_max=0.4),
            "ata": apt("augment", "weight", temperature=300.0),
        },
        task=FRAMED,
        steps=800,
    ),
    # All parts together with an augmentation that turns and does not shrink: at 64 px a picture zoomed out leaves too
    # few latents of the subject. Which part costs what, and which temperature goes with it? Rows without the
    # augmentation, and the baselines, are those of `temperature` and `baselines`.
    "whole": tuning(
        {
            "dco": Variant({"method": "dco", "dco_beta": 1000.0}),
            "weight, T 300": apt("weight", temperature=300.0),
            "weight, T 1000": apt("weight", temperature=1000.0),
            "apt, T 300": apt("augment", "weight", "rs", "aa", temperature=300.0, **TURNED, **RS, **AA),
            "apt, T 300, no augmentation": apt("weight", "rs", "aa", temperature=300.0, **RS, **AA),
            "apt, T 1000": apt("augment", "weight", "rs", "aa", temperature=1000.0, **TURNED, **RS, **AA),
        },
        steps=800,
    ),
    # All of APT with a small model's temperature and fill: what do RS and AA cost there? And does the published
    # temperature do as well where gradients that (1 - gamma) has made small still move AdamW? What does a prior pass in
    # every fourth step alone cost? And the recipe that came of it, all but AA, less each of its other parts, and on a
    # base stored in fp8, int8 and nf4.
    "regularisers": tuning(
        {
            "apt": whole(SMALL_MODEL),
            "apt without rs": whole(SMALL_MODEL, "rs"),
            "apt without aa": whole(SMALL_MODEL, "aa"),
            "apt without rs, aa": whole(SMALL_MODEL, "rs", "aa"),
            "apt without aa, T 1000, clipped": clipped(whole({**SMALL_MODEL, "temperature": 1000.0}, "aa")),
            "apt without aa, lazy prior 4": whole({**SMALL_MODEL, "lazy_prior": 4}, "aa"),
            "apt without aa, augmentation": whole(SMALL_MODEL, "aa", "augmentation"),
            "apt without aa, weight": whole(SMALL_MODEL, "aa", "weight"),
            "apt without aa, fp8 base": Variant({**whole(SMALL_MODEL, "aa").settings, "base_storage": "fp8"}),
            "apt without aa, int8 base": Variant({**whole(SMALL_MODEL, "aa").settings, "base_storage": "int8"}),
            "apt without aa, nf4 base": Variant({**whole(SMALL_MODEL, "aa").settings, "base_storage": "nf4"}),
        }
    ),
    # The baselines' own constants deserve the same care: DCO's beta was published for SDXL's losses.
    "baselines": tuning(
        {
            **{f"dco, beta {b}": Variant({"method": "dco", "dco_beta": float(b)}) for b in (10, 30, 100, 1000)},
            "t-lora, min_rank 4": Variant({"method": "tlora", "adapter": {"min_rank": 4}}),
            "t-lora, min_rank 8": Variant({"method": "tlora", "adapter": {"min_rank": 8}}),
            "dreambooth+preservation": Variant({"method": "dreambooth"}, preservation=True),
        },
        steps=800,
    ),
    # The paper's future work and its limit: schedules of the alignment, other augmentations, and a class word that
    # carries a wrong attribute ("monster toy"), with and without an init word of its own. Two near subjects and two far
    # ones, none of them red; at weights of 1, as the alignment must be strong for its schedule to be seen.
    "future": tuning(
        {
            "aa": apt("aa"),
            "rs + aa": apt("rs", "aa"),
            "aa linear": apt("aa", attn_schedule="linear"),
            "aa by indicator": apt("aa", attn_schedule="indicator", temperature="auto"),
            "weight + preservation": Variant(apt("weight").settings, preservation=True),
            "flip": apt("augment", temperature="auto", augment_kinds=["flip"]),
            "flip and color": apt("augment", temperature="auto", augment_kinds=["flip", "color"]),
            "wrong class word": Variant({**apt().settings, "class_word": "red {class_word}"}),
            "wrong class word, rs + aa": Variant({**apt("rs", "aa").settings, "class_word": "red {class_word}"}),
            "wrong class word, plain init": Variant(
                {**apt("rs", "aa").settings, "class_word": "red {class_word}", "init_word": "{class_word}"}
            ),
        },
        looks=(*TUNING[:2], *TUNING[4:]),
    ),
    # Each part beside the loss weight, and the whole with the published zoom, at the published temperature. It was the
    # verdict until `whole` had been run.
    "beside": verdict(
        {
            **BASELINES,
            "weight": apt("weight"),
            "weight+augment": apt("weight", "augment"),
            "weight+rs": apt("weight", "rs", **RS),
            "weight+aa": apt("weight", "aa", **AA),
            "apt": apt("augment", "weight", "rs", "aa", **RS, **AA),
            "weight, T 300": apt("weight", temperature=300.0),
        }
    ),
    "verdict": verdict(METHODS),
    # The preset quick look: a fifth of the steps at four times the rate. What does a run keep of the whole one, and is
    # it the rate or the number of steps?
    "quick": Grid(
        subjects=tuple(look.name for look in TUNING),
        seeds=(0,),
        variants={
            **FLOOR,
            **DREAMBOOTH,
            "apt without aa": whole(SMALL_MODEL, "aa"),
            "apt without aa, own rate": at_rate(1e-3, whole(SMALL_MODEL, "aa")),
            "apt without aa, twice the rate": at_rate(2e-3, whole(SMALL_MODEL, "aa")),
        },
        probe_at=(40, 80),
        sample_at=(80,),
        share=0.5,
        recipe={"steps": 80, "output": {"snapshot_every": 40}, **rate(4e-3)},
        task=WORLD,
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
    task=WORLD,
)

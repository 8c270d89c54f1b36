"""What the user should know about a run before its first step, one sentence each.

In: remarks on the model, the pictures, the texts and the memory. Not in: refusals (`plan`), sending notes (`streams`).
"""

from __future__ import annotations

import re

from ..disk.json_file import short_name
from ..photo_check.captions import NOT_ENGLISH, is_in_other_letters
from ..text.captions import SUBJECT, class_caption
from ..wording import listed, printable
from .plan import Plan
from .stopping import FEWEST

ENCODERS_ASIDE = (
    "The text encoders wait in main memory and move to the device twice a step, as its memory is short. Steps are "
    "shorter with identifier_mode word."
)
BLOCKS_ASIDE = (
    "Blocks of the network wait in main memory, as the device's is short, and steps take longer. A lower resolution, "
    "batch_size or rank may keep them on the device, as may a smaller base_storage."
)
COMPILES = "compile_blocks is on: compiling takes minutes in the first step, and again for each new size of picture."
OF_PRIOR = "Prior images: "  # before a note that would otherwise seem to be on the subject's pictures
_BRACES = re.compile(r"[{｛][^{}｛｝]*[}｝]")  # also the wide ones of Chinese keyboards
_V_NAME = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
_FEW_STEPS = re.compile(  # words in the names of distilled models, and not in "hyperreal"
    r"turbo|lightning|dmd2|hyper[-_ ]?(sd|xl|vae|\d)|(?<![a-z])(lcm|tcd)(?![a-z])", re.IGNORECASE
)
_WEIGHTED = re.compile(r"\([^()]*:\s*[\d.]+\s*\)")  # as hosts read it in a prompt


def notes_of(plan: Plan) -> list[str]:
    """Notes on the model and the pictures, then those on the settings."""
    prior = [f"{OF_PRIOR}{note}" for note in plan.prior_images.notes] if plan.prior_images else []
    pictures = [*plan.images.notes, *plan.images.repeats(), *prior, *_preserved_subject(plan)]
    savings = plan.savings
    aside = [ENCODERS_ASIDE] * savings.encoders_aside + [BLOCKS_ASIDE] * (savings.blocks_aside > 0)
    compiles = [COMPILES] if plan.config.compile_blocks else []
    texts = [*_foreign(plan), *_blind_stop(plan), *_cold(plan), *_literal(plan)]
    return [*plan.components.notes, *_by_name(plan), *pictures, *aside, *compiles, *texts]


def _by_name(plan: Plan) -> list[str]:
    """Warnings on what only the model's name may reveal, as most files hold nothing that does."""
    source, told = plan.components.source, list[str]()
    name = short_name(printable(source))
    if _V_NAME.search(source) and plan.components.schedule.prediction == "epsilon":
        told.append(
            f"{name} predicts v by its name, but nothing in it says so, and it is trained as predicting epsilon. If "
            "the name is right, set prediction_type to v_prediction, or in ComfyUI wire ModelSamplingDiscrete."
        )
    if _FEW_STEPS.search(source):
        told.append(
            f"{name} is distilled to few steps by its name, which training undoes. Train on the model that it was made "
            "from: the LoRA usually works on both."
        )
    return told


def _preserved_subject(plan: Plan) -> list[str]:
    """A note if pictures of the subject are also among the class pictures."""
    preserved = {image.content[0] for image in plan.prior_images.images} if plan.prior_images else set[bytes]()
    both = [image.name for image in plan.images.images if image.content[0] in preserved]
    note = f"Also among the prior images: {listed(both, 3)}. Prior images should not show the subject."
    return [note] if both else []


def _foreign(plan: Plan) -> list[str]:
    """Warnings on a class word and on texts that the text encoders cannot read."""
    captions = [image.caption or "" for image in plan.images.images]
    texts = dict.fromkeys([plan.config.data.caption_template, *plan.config.sampled_prompts, *captions])
    unread = [text for text in texts if is_in_other_letters(_BRACES.sub("", text))]
    shown = listed([short_name(printable(text), 40) for text in unread], 3)
    note = f"The text encoders of SD1.5 and SDXL know English only, so they understand nothing in this: {shown}."
    return [NOT_ENGLISH] * is_in_other_letters(plan.config.class_word) + [note] * bool(unread)


def _blind_stop(plan: Plan) -> list[str]:
    """A warning if `stop` has no drift to go by: no prompt is left to measure it, or too few snapshots do."""
    output, steps = plan.config.output, plan.config.steps
    if output.stop == "never":
        return []
    if not plan.unrelated:
        return [
            f"stop is {output.stop}, but every drift prompt names the class word: give others, or the run never "
            "stops early."
        ]
    needed, made = FEWEST[output.stop], (steps - 1) // output.snapshot_every
    note = (
        f"stop is {output.stop}, which compares {needed} snapshots, but {made} will be made before the last step: "
        "lower snapshot_every, or the run never stops early."
    )
    return [note] if made < needed else []


def _cold(plan: Plan) -> list[str]:
    """A warning if the run ends before its warm-up does."""
    warmup, steps = plan.config.optimizer.warmup_steps, plan.config.steps
    note = (
        f"warmup_steps is {warmup}, but the run ends at step {steps}, before the learning rate is what was set: "
        "lower it, or train longer."
    )
    return [note] if warmup >= steps else []


def _literal(plan: Plan) -> list[str]:
    """Notes on what looks as if it were not read as it stands: placeholders that are none, and weights of words."""
    captions = [image.caption or "" for image in plan.images.images]
    texts = [plan.config.data.caption_template, *plan.config.sampled_prompts, *plan.unrelated, *captions]
    if plan.prior_images:
        prior = [image.caption or plan.config.data.class_caption for image in plan.prior_images.images]
        texts += [class_caption(text, plan.config.class_word) for text in prior]

    def told(reason: str, pattern: re.Pattern[str]) -> list[str]:
        found = dict.fromkeys(match[0] for text in texts for match in pattern.finditer(text))
        shown = listed([short_name(printable(part), 40) for part in found if part != SUBJECT], 3)
        return [f"{reason}, so this is read as it stands: {shown}."] if shown else []

    return told(f"Only {SUBJECT} is filled in", _BRACES) + told("Words have no weights in training", _WEIGHTED)

"""A check-up in words: the strength, why, what the LoRA does and costs, and what these numbers cannot show.

In: sentences. Not in: the numbers (`findings`), the rule (`recommend`).
"""

from __future__ import annotations

from collections.abc import Callable

from ..wording import bin_names, counted, listed, printable
from .findings import AtStrength, CheckUp, Recommendation
from .placing import Placement
from .recommend import USUAL, known_gain

Say = Callable[[str], str]
KIND_NAMES = {"difference": "full differences"}  # the others are called as they are
FEW_RANKS = 0.5  # worth a remark if the LoRA uses less than this share of its ranks (ours)
SAME_AS_BARE = 0.8  # from here on the bare class word moves nearly as far as the trigger (ours)


def paragraphs(found: CheckUp, say: Say = str) -> list[str]:
    """The parts of the verdict, in order. `say`: applied to each sentence, for example to translate it."""
    parts = [_strength(found), _gain(found), _drift(found), _attention(found), _weights(found), _misfits(found)]
    parts += [found.notes, _blind(found)]
    return [" ".join(map(say, part)) for part in parts if part]


def headline(found: CheckUp) -> str:
    """The recommended strength in one sentence."""
    return f"Use it at strength {found.recommendation.strength:g}."


def nearest(found: CheckUp) -> AtStrength:
    """The measurement closest to the recommended strength."""
    return min(found.points, key=lambda point: abs(point.strength - found.recommendation.strength))


def _strength(found: CheckUp) -> list[str]:
    pick, highest = found.recommendation, found.points[-1].strength
    said = [headline(found)]
    if pick.rule == "gain":
        said.append(f"There the model predicts the {_pictures(found)} best.")
    elif pick.rule == "nothing":
        said.append("The LoRA changes nothing that was measured, so the usual 1 stands.")
    elif not pick.overfitted:
        said.append("Nothing that was measured speaks against the usual strength.")
    if pick.open_ended:
        said.append(f"No strength above {highest:g} was tried, so more may help: compare samples.")
    return said + (_overfitted(pick) if pick.overfitted else [])


def _overfitted(pick: Recommendation) -> list[str]:
    made_for = pick.strength if pick.rule == "gain" else USUAL
    said = [
        f"It is overfitted: at strength {made_for:g} prompts about other things change by {pick.spill:.0%} of what "
        "leaving the prompt out changes.",
        "An earlier snapshot or fewer steps would do better.",
    ]
    if pick.rule == "gain":
        said.append(f"At {pick.gentle:g} that falls to 100%, but likeness falls too: compare samples.")
    return said


def _gain(found: CheckUp) -> list[str]:
    if not found.pictures:
        return []
    if not known_gain(found.points):
        return [
            f"On the {_pictures(found)} its gain over the model without it is within chance: was it trained on others?"
        ]
    at = nearest(found)
    assert at.gain is not None
    levels = at.gain.levels
    most = max(range(len(levels)), key=levels.__getitem__)
    return [
        f"At strength {at.strength:g} it errs {at.gain.mean:.1%} (±{at.gain.error:.1%}) less on the {_pictures(found)} "
        f"than the model without it, most at the noise levels {bin_names(found.bins)[most]} ({levels[most]:.0%})."
    ]


def _drift(found: CheckUp) -> list[str]:
    at = nearest(found)
    if not at.subject:
        return []
    said = [
        f"At strength {at.strength:g} prompts about other things change {at.ratio:.2f} times as much as the subject's "
        "own (the drift ratio).",
        f"That is {at.spill:.0%} of what leaving the prompt out changes (the spill).",
    ]
    if found.subject.trigger != found.subject.class_word:
        share = at.bare / at.subject
        said.append(f'The bare word "{found.subject.class_word}" changes {share:.2f} times as much as the trigger.')
        if share > SAME_AS_BARE:
            said.append("That is nearly as far, so check whether the class word shows the subject too.")
    return said


def _attention(found: CheckUp) -> list[str]:
    at = nearest(found)
    if at.alignment is None:
        return []
    said = [f"Its attention agrees with the model's by {at.alignment:.3f} (1 is equal)."]
    if at.context is not None:
        said.append(f"The other words of the prompt keep {at.context:.0%} of the attention they had.")
    return said


def _weights(found: CheckUp) -> list[str]:
    blocks, placed = found.blocks, found.placement.placed
    kinds = listed(list(dict.fromkeys(KIND_NAMES.get(item.kind, item.kind) for item in placed)))
    layers, idle = counted(len(placed), "layer"), sum(block.unchanged for block in blocks)
    said = [f"The file holds {kinds} in {found.lora.dtype} on {layers}{_ranks(found.placement)}."]
    top = max(blocks, key=lambda block: block.moved)
    if idle:
        said.append(f"Layers without any change: {idle} of {len(placed)}.")
    if top.moved:
        said.append(f"It moves the block {top.name} the most, by {top.moved:.1%} of the norm of its weights.")
    ranked = [(block, block.layers - block.unchanged) for block in blocks if block.rank and block.used]
    if ranked:
        count = sum(changed for _, changed in ranked)
        rank, used = (sum(getattr(b, name) * changed for b, changed in ranked) / count for name in ("rank", "used"))
        said.append(f"Of a rank of {rank:.0f} it uses {used:.1f} on average (95% of the change).")
        if used < FEW_RANKS * rank:
            said.append("A smaller rank would have held it.")
    if any(block.name.startswith("text") for block in blocks):
        said.append("It changes the text encoder too, and that was measured.")
    return said


def _ranks(placement: Placement) -> str:
    both = ("rank", placement.ranks), ("alpha", placement.alphas)
    texts = [f"{what} {_range(values)}" for what, values in both if values]
    return f", {', '.join(texts)}" if texts else ""


def _range(values: list[int] | list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _misfits(found: CheckUp) -> list[str]:
    placement, lora = found.placement, found.lora
    kinds = (
        ("Not in this model", placement.unplaced),
        ("Of another shape than the layer of that name", placement.unfit),
        ("With values that are not numbers", placement.broken),
        ("Of no kind that is read here", lora.unread),
    )
    return [f"{what}, so left out: {listed(list(map(printable, sorted(names))))}." for what, names in kinds if names]


def _pictures(found: CheckUp) -> str:
    return "picture" if found.pictures == 1 else "pictures"


def _blind(found: CheckUp) -> list[str]:
    said = ["These numbers cannot see likeness or whether a prompt is followed: compare pictures before you decide."]
    if not found.pictures:
        said.append("Without the training pictures they cannot tell what the LoRA has learned, only what it changes.")
    if found.subject.embedding is None and found.subject.trigger == found.subject.class_word:
        said.append("No trigger was given, so the class word stood for it.")
    return said

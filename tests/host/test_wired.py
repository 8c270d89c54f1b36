"""Whatever a wire carries into any input of any node: it works, or one sentence says what is wrong.

Not here: what each value becomes (`tests/test_given.py`), and mistakes that people make (`test_mistakes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..node_texts import nodes
from .graphs import SETTINGS, image_batch, training_graph, untouched, upload_pictures
from .server import Host, HostError
from .trained import new_run
from .workflows import Graph, Node, checkpoint

NODE = "sends_node.py"
SENT = ("null", "nothing", "nan", "fraction", "digit", "array", "odd", "empty", "words")
# Settings with which a node ends quickly: most end with a sentence of their own, after all inputs are read.
QUICK: dict[str, dict[str, Any]] = {
    "APTTrain": {**SETTINGS, "captions": "a lamp"},
    "APTImageSet": {"resolution": 64},
    "APTOverfitIndicatorMonitor": {"snapshot": "step", "step": 999},
    "APTSnapshotSheet": {
        "column": "Z", "width": 64, "height": 64, "sampler_steps": 1, "prompts": "a {subject}", "steps": "last",
    },
    "APTLoRACheckUp": {
        "class_word": "{subject}", "resolution": 64, "draws": 1, "sample_steps": 0, "strengths": "1.0",
        "unrelated": "a city",
    },
    "APTAttentionAlignPreview": {"class_word": "toy", "tokens": "nowhere"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(host: Host) -> Callable[[str], tuple[Graph, Node]]:
    """A graph around one node of a type, with what its wires need."""
    names = upload_pictures(host)
    trained, _ = training_graph(names, steps=1)
    run = new_run(host, lambda: host.run(trained.prompt)).name

    def graph(node_type: str) -> tuple[Graph, Node]:
        g = Graph()
        model, clip, vae = checkpoint(g, "sd15.safetensors")
        earlier = g.node("APTLoadRun", run=run, step=0)
        wires = {"model": model, "clip": clip, "vae": vae, "tuned": model, "run": earlier[0], "lora": earlier[1]}
        if node_type == "APTLoadRun":
            return g, earlier
        if node_type in ("APTTrain", "APTImageSet"):
            wires["images"] = image_batch(g, names)
        needed = {slot.id for slot in nodes()[node_type].inputs if not slot.more.get("optional")}
        needed |= {"images", "lora"} if node_type in ("APTImageSet", "APTLoRACheckUp") else set()
        inputs = {**untouched(node_type), **{name: wire for name, wire in wires.items() if name in needed}}
        node = g.node(node_type, **{**inputs, **QUICK.get(node_type, {})})
        if node_type.endswith("Options"):
            g.node("PreviewAny", source=node[0])
        return g, node

    return graph


@pytest.mark.parametrize("node_type", nodes())
def test_it_works_or_is_told_in_a_sentence(
    host: Host, made: Callable[[str], tuple[Graph, Node]], node_type: str
) -> None:
    queued: dict[str, str] = {}
    for slot in nodes()[node_type].inputs:
        for what in SENT:
            if what == "nothing" and not nodes()[node_type].is_input_list:
                continue  # the host itself fails on an empty list
            g, node = made(node_type)
            g.prompt[node.id]["inputs"][slot.id] = g.node("AptSends", what=what)[0]
            try:
                queued[f"{slot.id}={what}"] = host.queue(g.prompt)
            except HostError as error:  # two sources of pictures, as a wire counts as one before its value is known
                assert "are both given" in error.sentence
    outcomes = {case: outcome_of(host, prompt) for case, prompt in queued.items()}
    assert {case: told for case, told in outcomes.items() if not told.endswith(".")} == {}
    assert max(map(len, outcomes.values())) < 1100


@pytest.mark.parametrize("what", ["mask", "array"])
def test_what_is_no_picture_is_told_by_the_attention_preview(
    host: Host, made: Callable[[str], tuple[Graph, Node]], what: str
) -> None:
    """Its picture is read last, beside a VAE."""
    g, node = made("APTAttentionAlignPreview")
    vae = checkpoint(g, "sd15.safetensors")[2]
    g.prompt[node.id]["inputs"] |= {"tokens": "", "vae": vae, "image": g.node("AptSends", what=what)[0]}
    assert outcome_of(host, host.queue(g.prompt)).split(":")[0] in (
        "A tensor has the shape (8, 8)", "Pictures and masks are tensors, but one is of the type ndarray",
    )  # fmt: skip


def outcome_of(host: Host, prompt: str) -> str:
    """The sentence of the node that refused; anything else that failed ends with no full stop."""
    try:
        host.wait(prompt)
    except HostError as error:
        kind = error.details["exception_type"]
        return error.sentence if kind == "InputError" else f"{kind}: {error.sentence.rstrip('.')}"
    return "It works."

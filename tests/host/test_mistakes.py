"""What a user gets wrong, told where it stands: at the node when the prompt is queued, before anything is loaded.

In: constants on the nodes; contradictions that only wires bring together; how the host words a refusal. Not in: what
the wires hold (`test_components`).
"""

from __future__ import annotations

from typing import Any

import pytest

from .graphs import training_graph, upload_pictures
from .server import Host, HostError
from .workflows import Graph


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def refused(host: Host, g: Graph) -> dict[str, Any]:
    """The complaints at the nodes, by node; the prompt does not get into the queue."""
    with pytest.raises(HostError) as caught:
        host.queue(g.prompt)
    assert caught.value.kind == "refused"
    return caught.value.details["node_errors"]


TRAIN_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no class word": ({"class_word": ""}, "class_word is empty: say what the subject is"),
    "a blank class word": ({"class_word": "  \n"}, "class_word is empty"),
    "a placeholder": ({"class_word": "{subject}"}, "class_word is '{subject}': write plain words"),
    "the other placeholder": ({"class_word": "a {class_word}"}, "class_word is 'a {class_word}'"),
    "an embedding": ({"class_word": "embedding:toy"}, "class_word is 'embedding:toy'"),
    "a path as a name": ({"subject": "../toy"}, "subject is '../toy': use only letters"),
    "a class word no file can have": (
        {"subject": "", "class_word": "café"},
        "subject is empty and class_word is 'café', which cannot name files: give a name",
    ),
    "a template without a subject": ({"caption_template": "a photo"}, "caption_template is 'a photo': write {subject}"),
    "nothing to learn": ({"learning_rate": 0}, "learning_rate is 0.0: give a number above 0 and at most 1000"),
    "no number": ({"learning_rate": "nan"}, "learning_rate is nan"),
    "no steps": ({"steps": 0}, "steps is 0: give a whole number from 1 to"),
    "too large": ({"batch_size": 10_000}, "batch_size is 10000: give a number from 1 to 256"),
    "no such method": ({"method": "LoKr"}, "method is 'LoKr': choose one of APT, DreamBooth"),
    "no such way": ({"resume": "never"}, "resume is 'never': choose one of automatic, restart"),
}


@pytest.mark.parametrize(("changes", "sentence"), TRAIN_MISTAKES.values(), ids=list(TRAIN_MISTAKES))
def test_a_mistake_on_the_training_node_is_refused_there(
    host: Host, names: list[str], changes: dict[str, Any], sentence: str
) -> None:
    g, node = training_graph(names, **changes)
    assert_told_once(refused(host, g), node.id, sentence)


OPTION_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "warmup": ({"warmup_steps": 5}, "warmup_steps is 5: set lr_schedule to constant_with_warmup"),
    "temperature": ({"temperature": "warm"}, "temperature is 'warm': give a number above 0, or auto"),
    "no kind": ({"augment_kinds": ["blur"]}, "augment_kinds is 'blur': choose from affine, flip, color"),
    "no kind, as text": ({"augment_kinds": "affine+blur"}, "augment_kinds is 'blur'"),
    "drift of the subject": ({"drift_prompts": "{subject} at night"}, "drift_prompts is '{subject} at night'"),
    "init_word": ({"init_word": "{subject}"}, "init_word is '{subject}': write plain words"),
    "background": ({"background": "sky"}, "background is 'sky': give a colour name"),
    "range": ({"bins": 0}, "bins is 0: give a whole number from 1 to 1000"),
    "upper range": ({"max_zoom": 50.0}, "max_zoom is 50.0: give a number from 0 to 10"),
    "between auto and the range": ({"max_zoom": 0.5}, "max_zoom is 0.5: give a number from 1 to 1000"),
    "choice": ({"mask_counts": "grey"}, "mask_counts is 'grey': choose one of white, black"),
    "checkpointing": ({"gradient_checkpointing": "maybe"}, "gradient_checkpointing is 'maybe': choose one of auto"),
}


@pytest.mark.parametrize(("setting", "sentence"), OPTION_MISTAKES.values(), ids=list(OPTION_MISTAKES))
def test_a_mistake_on_the_options_node_is_refused_there(
    host: Host, names: list[str], setting: dict[str, Any], sentence: str
) -> None:
    g, node = training_graph(names, setting=setting)
    assert_told_once(refused(host, g), g.prompt[node.id]["inputs"]["options"][0], sentence)


PREVIEW = {"noise_level": 0.5, "layers": "decoder", "tokens": "", "seed": 0}
PREVIEW_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": " ", "trigger": "", "class_word": "toy"}, "The prompt is empty"),
    "nobody": ({"prompt": "a {subject}", "trigger": "", "class_word": ""}, "nothing says what stands for it"),
    "layers": ({"prompt": "a", "trigger": "", "class_word": "", "layers": "few"}, "layers is 'few': choose one of"),
    "noise": ({"prompt": "a", "trigger": "", "class_word": "", "noise_level": 2.0}, "noise_level is 2.0"),
}


@pytest.mark.parametrize(("values", "sentence"), PREVIEW_MISTAKES.values(), ids=list(PREVIEW_MISTAKES))
def test_a_mistake_on_the_attention_preview_is_refused_there(host: Host, values: dict[str, Any], sentence: str) -> None:
    g = Graph()
    loader = g.node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
    node = g.node("APTAttentionAlignPreview", model=loader[0], tuned=loader[0], clip=loader[1], **{**PREVIEW, **values})
    assert_told_once(refused(host, g), node.id, sentence)


def assert_told_once(complaints: dict[str, Any], node: str, sentence: str) -> None:
    """At that node and no other; nothing names the folder that the pack lies in before the sentence."""
    assert list(complaints) == [node]
    (error,) = complaints[node]["errors"]
    assert sentence in error["details"] and error["details"].endswith("."), error
    assert "/" not in error["extra_info"]["exception_type"] and "custom_nodes" not in error["details"], error


# ---- what only wires bring together --------------------------------------------------------------------------------


def told_before_loading(host: Host, g: Graph, node: str) -> str:
    """The sentence at a node, whose checkpoint nobody has asked for; the log has no inner calls of the pack."""
    (loader,) = [item for item in g.prompt.values() if item["class_type"] == "CheckpointLoaderSimple"]
    loader["inputs"]["ckpt_name"] = "sd15_kl.safetensors"  # loaded by no other test here
    before = len(host.log_text())
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.kind == "failed" and caught.value.node == node
    assert caught.value.details["exception_type"] == "InputError"
    said = host.log_text()[before:]
    assert "model_type" not in said and "settings.py" not in said and "During handling" not in said, said
    return caught.value.sentence


@pytest.mark.parametrize(
    ("setting", "changes", "sentence"),
    [
        ({"min_rank": 5}, {"rank": 4}, "min_rank is 5: give a whole number from 1 to rank (4)."),
        ({"lazy_prior": 2}, {"method": "DCO"}, "lazy_prior is 2: DCO's loss needs the prior at every step"),
        ({}, {"captions": "a lamp\na table"}, "does not mention the subject"),
        ({}, {"captions": "a toy\na toy\na toy"}, "The number of captions is 3, of images 2"),
    ],
)
def test_what_contradicts_across_nodes_is_told_before_the_model_loads(
    host: Host, names: list[str], setting: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    g, node = training_graph(names, setting=setting, **changes)
    assert sentence in told_before_loading(host, g, node.id)


@pytest.mark.parametrize(("name", "value"), [("class_word", ""), ("class_word", "{subject}"), ("subject", "a/b")])
def test_a_wired_mistake_is_told_before_the_model_loads(host: Host, names: list[str], name: str, value: str) -> None:
    g, node = training_graph(names)
    g.prompt[node.id]["inputs"][name] = g.node("PrimitiveString", value=value)[0]
    assert f"{name} is " in told_before_loading(host, g, node.id)


def several(g: Graph, *values: str) -> list[Any]:
    """A list of texts as one wire."""
    texts = [g.node("PrimitiveString", value=value)[0] for value in values]
    return g.node("CreateList", **{f"inputs.input{place}": text for place, text in enumerate(texts)})[0]


@pytest.mark.parametrize("name", ["subject", "optimizer", "sample_prompts"])
def test_a_list_where_one_value_counts_is_told_before_the_model_loads(host: Host, names: list[str], name: str) -> None:
    """Of which the first alone would be trained, unseen: whoever wires several expects as many runs."""
    g, node = training_graph(names)
    at = g.prompt[node.id]["inputs"]["options"][0] if name == "optimizer" else node.id
    g.prompt[at]["inputs"][name] = several(g, "adamw", "sgd")
    assert told_before_loading(host, g, at) == f"{name} gets 2 values at once: give it one at a time."


def test_several_models_are_told(host: Host, names: list[str]) -> None:
    g, node = training_graph(names)
    (loader,) = [item for item in g.prompt.values() if item["class_type"] == "CheckpointLoaderSimple"]
    loader["inputs"]["ckpt_name"] = several(g, "sd15.safetensors", "sd15_kl.safetensors")
    with pytest.raises(HostError, match="model gets 2 values at once"):
        host.run(g.prompt)


def test_what_a_wire_decides_is_not_refused_unseen(host: Host, names: list[str]) -> None:
    """Warm-up is right beside the schedule that the wire brings, a subject beside a wired class word."""
    g, node = training_graph(names, setting={"warmup_steps": 1}, steps=1)
    wired = g.prompt[node.id]["inputs"]
    g.prompt[wired["options"][0]]["inputs"]["warmup_steps"] = g.node("PrimitiveInt", value=0)[0]
    wired |= {"class_word": g.node("PrimitiveString", value="toy")[0], "subject": ""}
    wired["steps"] = g.node("PrimitiveInt", value=1)[0]
    host.run(g.prompt)


@pytest.mark.parametrize(
    "kinds", [[], ["affine"], ["flip", "affine"], ["color", "flip", "affine"], "affine", "flip+color"]
)
def test_augment_kinds_are_a_choice_or_a_list_as_older_workflows_send_it(
    host: Host, names: list[str], kinds: list[str] | str
) -> None:
    g, node = training_graph(names, setting={"augment_kinds": kinds, "adaptive_augmentation": True}, class_word="")
    assert list(refused(host, g)) == [node.id]  # for its class word alone

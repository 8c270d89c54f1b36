"""What reaches a node of what a wire carries: nothing, other kinds, numbers of numpy's. Every input of every node.

Not here: what the host does with the nodes' answers (`tests/host/test_wired.py`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from .node_texts import Slot, node_classes, node_modules, nodes

EVERY = [(node_id, slot.id) for node_id, node in nodes().items() for slot in node.inputs]


@pytest.fixture(scope="module")
def boundary() -> Iterator[Any]:
    with node_modules("boundary") as (module,):
        module.translated, module.check_installed = str, lambda: None
        yield module


def slot_of(node_id: str, name: str) -> Slot:
    return next(slot for slot in nodes()[node_id].inputs if slot.id == name)


def default_of(slot: Slot) -> Any:
    return slot.more.get("default")


def reaches(boundary: Any, node_id: str, method: str = "execute", /, **inputs: Any) -> dict[str, Any]:
    """What a node of that schema is called with, where the host calls it with these."""
    schema = nodes()[node_id]

    def record(_cls: Any, **inner: Any) -> dict[str, Any]:
        return inner

    members = {"define_schema": classmethod(lambda _cls: schema), method: classmethod(record)}
    answer = getattr(boundary.speaks_plainly(type("Node", (), members)), method)(**inputs)
    return asyncio.run(answer) if inspect.iscoroutine(answer) else answer


def wire(node_id: str, *values: Any) -> Any:
    """As the host hands it to that node."""
    return list(values) if nodes()[node_id].is_input_list else values[0]


@pytest.mark.parametrize(("node_id", "name"), EVERY)
def test_an_input_that_gets_nothing_has_its_default_or_is_missed(boundary: Any, node_id: str, name: str) -> None:
    slot = slot_of(node_id, name)
    for nothing in ([None], []) if nodes()[node_id].is_input_list else (None,):
        if default_of(slot) is not None:
            assert reaches(boundary, node_id, **{name: nothing}) == {name: wire(node_id, default_of(slot))}
        elif slot.more.get("optional"):
            assert reaches(boundary, node_id, **{name: nothing}) == {}
        else:
            with pytest.raises(ValueError, match=rf"(?i)^(the )?{name} (wire is empty|gets nothing).*: \w+.*\.$"):
                reaches(boundary, node_id, **{name: nothing})


@pytest.mark.parametrize(("node_id", "name"), EVERY)
def test_what_has_no_value_yet_may_come(boundary: Any, node_id: str, name: str) -> None:
    slot, nothing = slot_of(node_id, name), (None,) if nodes()[node_id].is_input_list else None
    assert reaches(boundary, node_id, "validate_inputs", **{name: nothing}) == {name: nothing}
    if slot.more.get("lazy"):
        assert reaches(boundary, node_id, "check_lazy_status", **{name: nothing}) == {name: nothing}
    elif default_of(slot) is not None:
        early = reaches(boundary, node_id, "check_lazy_status", **{name: nothing})
        assert early == {name: wire(node_id, default_of(slot))}


def is_object(slot: Slot) -> bool:
    """Not what a widget could hold, nor pictures, which the trainer looks at one by one."""
    return default_of(slot) is None and slot.kind not in ("Combo", "String", "Image", "Mask")


@pytest.mark.parametrize(("node_id", "name"), [(at, name) for at, name in EVERY if is_object(slot_of(at, name))])
def test_a_wire_of_another_kind_is_told(boundary: Any, node_id: str, name: str) -> None:
    """A node with outputs of any type lets them through."""
    for value in (object(), 3, "a", np.zeros(2)):
        with pytest.raises(ValueError, match=rf"^{name} is of the type \w+: wire an? [A-Z_]+"):
            reaches(boundary, node_id, **{name: wire(node_id, value)})


@pytest.mark.parametrize("name", ["latent", "lora", "tuned"])
def test_a_dictionary_without_tensors_is_told(boundary: Any, name: str) -> None:
    (node_id,) = {at for at, slot in EVERY if slot == name and is_object(slot_of(at, slot))}
    tensor = torch.zeros(1, 4, 8, 8)
    kept = {"samples": tensor} if name == "latent" else {"a": tensor, "b": tensor}
    assert reaches(boundary, node_id, **{name: wire(node_id, kept)}) == {name: wire(node_id, kept)}
    for value in ({}, {"samples": None}, {"samples": "a"}, {"samples": np.zeros(2)}, {**kept, "samples": [tensor]}):
        with pytest.raises(ValueError, match=rf"^{name} holds no tensors, or other things too: wire a"):
            reaches(boundary, node_id, **{name: wire(node_id, value)})


NUMBERS = [(node_id, name) for node_id, name in EVERY if type(default_of(slot_of(node_id, name))) in (int, float)]


@pytest.mark.parametrize(("node_id", "name"), NUMBERS)
def test_a_number_is_a_plain_one_of_its_kind_or_refused(boundary: Any, node_id: str, name: str) -> None:
    kind = type(default_of(slot_of(node_id, name)))
    for number in (3, 3.0, True, np.int64(3), np.float32(3), torch.tensor(3)):
        (came,) = reaches(boundary, node_id, **{name: wire(node_id, number)}).values()
        (came,) = came if isinstance(came, list) else [came]
        assert came == float(number) and type(came) is kind
    for value in ("3", [3], {"a": 3}, np.zeros(2), object()):
        with pytest.raises(ValueError, match=f"^{name} is .*: give a number"):
            reaches(boundary, node_id, **{name: wire(node_id, value)})
    if kind is int:
        with pytest.raises(ValueError, match=f"^{name} is 2.5: give a whole number"):
            reaches(boundary, node_id, **{name: wire(node_id, 2.5)})


@pytest.mark.parametrize(("node_id", "name"), NUMBERS)
def test_every_number_has_a_range_that_refuses_what_is_beyond_all(boundary: Any, node_id: str, name: str) -> None:
    slot = slot_of(node_id, name)
    assert slot.min <= default_of(slot) <= slot.max
    for number in (float("nan"), float("inf"), -float("inf"), 10**5000, -(10**5000)):
        (came,) = reaches(boundary, node_id, **{name: wire(node_id, number)}).values()
        (came,) = came if isinstance(came, list) else [came]
        assert not slot.min <= came <= slot.max and len(str(came)) < 10


TEXTS = [(at, name) for at, name in EVERY if isinstance(default_of(slot_of(at, name)), str)]


@pytest.mark.parametrize(("node_id", "name"), TEXTS)
def test_a_text_is_one_that_can_be_read(boundary: Any, node_id: str, name: str) -> None:
    lists = [] if name == "augment_kinds" else [["a"]]  # which older workflows have there
    for value in ("x" * 20_000, "a\ud800", "a\0b", 5, np.zeros(2), object(), *lists):
        with pytest.raises(ValueError, match=rf"^{name} is .*: (write some|leave out|give a text)") as caught:
            reaches(boundary, node_id, **{name: wire(node_id, value)})
        assert len(str(caught.value)) < 100
    assert reaches(boundary, node_id, **{name: wire(node_id, "a\n" * 20_000)}), "a line by itself is short"


@pytest.mark.parametrize(
    ("default", "value", "comes"),
    [(True, 0, False), (False, np.bool_(True), True), (False, torch.tensor(1), True), ("a", "b", "b"), (None, 5, 5)],
)
def test_switches_texts_and_wires(boundary: Any, default: Any, value: Any, comes: Any) -> None:
    assert answer(boundary, default, value) == {"a": comes}


@pytest.mark.parametrize(
    ("default", "value", "sentence"),
    [
        (True, "yes", "a is 'yes': give true or false."),
        ("a", 5, "a is 5: give a text."),
        ("a", [1] * 10**6, r"a is \[1, 1, 1, 1, 1, 1, \.\.\.\]: give a text\."),
    ],
)
def test_another_kind_is_told_in_short(boundary: Any, default: Any, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        answer(boundary, default, value)


def answer(boundary: Any, default: Any, value: Any) -> Any:
    schema = type("Schema", (), {"inputs": [Slot("X", "a", "a", "", {"default": default})], "is_input_list": False})
    members = {"define_schema": classmethod(lambda _cls: schema), "execute": classmethod(lambda _cls, **inner: inner)}
    return boundary.speaks_plainly(type("Node", (), members)).execute(a=value)


def test_a_gap_in_a_list_is_filled_or_told(boundary: Any) -> None:
    """A caption's place says whose it is; a picture's cannot stay empty."""
    assert reaches(boundary, "APTTrain", captions=[None, "a toy"]) == {"captions": ["", "a toy"]}
    with pytest.raises(ValueError, match="^images gets nothing from the node before it: "):
        reaches(boundary, "APTTrain", images=[torch.zeros(1, 8, 8, 3), None])


def test_an_input_that_a_node_does_not_have_is_left_out(boundary: Any) -> None:
    """A link of another version's workflow, which the host passes on."""
    assert reaches(boundary, "APTLoadRun", step=1, colour=5) == {"step": 1}


def test_a_sentence_quotes_no_book(boundary: Any) -> None:
    def refuses(_cls: Any, **inputs: Any) -> None:
        raise boundary.InputError(f"a is {inputs['a']!r}: give another.")

    schema = type("Schema", (), {"inputs": [Slot("X", "a", "a", "")], "is_input_list": False})
    members = {"define_schema": classmethod(lambda _cls: schema), "execute": classmethod(refuses)}
    with pytest.raises(ValueError, match=r"^a is 'xxx[^']+ \.\.\. x+': give another\.$") as caught:
        boundary.speaks_plainly(type("Node", (), members)).execute(a="x" * 10**6)
    assert len(str(caught.value)) < 1100


def test_every_node_of_the_pack_does_so() -> None:
    """The first input of each refuses what is no value of its kind, before the node does anything."""
    with node_modules("boundary") as (boundary,):
        boundary.translated, boundary.check_installed = str, lambda: None
        found = {node.define_schema().node_id: node for node in node_classes()}
        assert list(found) == list(nodes())
        for node_id, node in found.items():
            slot = nodes()[node_id].inputs[0]
            nothing_or_odd = object() if default_of(slot) is not None else None
            with pytest.raises(ValueError, match=rf"(?i)^(the )?{slot.id} (is|wire|gets)"):
                node.execute(**{slot.id: wire(node_id, nothing_or_odd)})

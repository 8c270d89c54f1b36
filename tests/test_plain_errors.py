"""A user's mistake leaves a node as its sentence alone: no folder, no name of a module, no inner calls.

Not here: which mistakes there are, and what the host makes of them (`tests/host/test_mistakes.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .node_modules import node_module
from .node_texts import node_modules

METHODS = ("validate_inputs", "check_lazy_status", "execute")


@pytest.fixture
def boundary(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folders: Any = ModuleType("folder_paths")
    folders.get_user_directory = lambda: str(tmp_path)
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    with node_module("boundary") as module:
        yield module


def answer_of(returned: Any) -> Any:
    """What the host gets of a method: it waits for what is asynchronous."""
    return asyncio.run(returned) if inspect.iscoroutine(returned) else returned


def node_that(does: Any, *names: str) -> Any:
    schema = SimpleNamespace(inputs=[SimpleNamespace(id=name) for name in ("steps", "a")], is_input_list=False)
    methods = {name: classmethod(does) for name in names}
    return type("Node", (), {**methods, "define_schema": classmethod(lambda _cls: schema)})


@pytest.mark.parametrize("name", METHODS)
def test_the_host_is_told_the_sentence_and_a_plain_name(boundary: Any, name: str) -> None:
    def inner(cls: Any, **inputs: Any) -> None:
        raise boundary.InputError("steps is 0: give more.")

    node = boundary.speaks_plainly(node_that(inner, name))
    with pytest.raises(ValueError, match=r"^steps is 0: give more\.$") as caught:
        answer_of(getattr(node, name)(steps=0))
    assert (caught.type.__module__, caught.type.__qualname__) == ("builtins", "InputError")
    told = "".join(traceback.format_exception(caught.value))
    assert told.endswith("\nInputError: steps is 0: give more.\n") and "in inner" not in told and "During" not in told


def test_anything_else_passes_as_it_is(boundary: Any) -> None:
    def fails(cls: Any, **inputs: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        boundary.speaks_plainly(node_that(fails, "execute")).execute()
    node = boundary.speaks_plainly(node_that(lambda cls, **inputs: (cls, inputs), "execute"))
    assert node.execute(a=1) == (node, {"a": 1})
    assert not hasattr(node, "validate_inputs")  # else the host would leave ranges and choices to it


def test_what_is_checked_when_queued_is_checked_again_with_what_came_by_wires(boundary: Any) -> None:
    def validate(cls: Any, steps: int | None = None) -> bool:
        if steps == 0:
            raise boundary.InputError("steps is 0: give more.")
        return True

    plain = node_that(lambda cls, **inputs: inputs, "check_lazy_status", "execute")
    node = boundary.speaks_plainly(type("Checked", (), {**vars(plain), "validate_inputs": classmethod(validate)}))
    assert answer_of(node.validate_inputs(steps=None)) and node.execute(steps=3) == {"steps": 3}
    for name in ("check_lazy_status", "execute"):
        with pytest.raises(ValueError, match=r"^steps is 0: give more\.$"):
            getattr(node, name)(steps=0)


def test_what_is_checked_when_queued_does_not_hold_up_the_hosts_event_loop(boundary: Any) -> None:
    where = boundary.speaks_plainly(node_that(lambda cls, **inputs: threading.current_thread(), "validate_inputs"))
    assert answer_of(where.validate_inputs()) is not threading.current_thread()


def test_without_its_requirements_no_node_works(boundary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was trained elsewhere is loaded and drawn without the training node, which used to say so alone."""
    needed = tmp_path / "requirements.txt"
    needed.write_text("surely_not_there>=1\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[boundary.check_installed.__module__], "_FILE", needed)
    node = boundary.speaks_plainly(node_that(lambda cls, **inputs: True, *METHODS))
    assert answer_of(node.validate_inputs()), "the editor is told of its own mistakes first"
    for name in ("check_lazy_status", "execute"):
        with pytest.raises(ValueError, match="APT Train needs surely_not_there: run "):
            getattr(node, name)()


@pytest.mark.parametrize(
    ("module", "name", "wired"),
    [
        ("attention_preview", "APTAttentionAlignPreview", {"noise_level": -0.1}),
        ("attention_preview", "APTAttentionAlignPreview", {"layers": "few"}),
        ("monitor", "APTOverfitIndicatorMonitor", {"width": 0}),
        ("monitor", "APTOverfitIndicatorMonitor", {"snapshot": "newest"}),
        ("snapshot_sheet", "APTSnapshotSheet", {"cell": 0}),
        ("snapshot_sheet", "APTSnapshotSheet", {"sampler_steps": 0}),
        ("check_up", "APTLoRACheckUp", {"width": [1]}),
        ("monitor", "APTOverfitIndicatorMonitor", {"step": {"a": 1}}),
        ("snapshot_sheet", "APTSnapshotSheet", {"prompts": {"a": 1}}),
        ("train", "APTTrain", {"subject": [["a"]]}),
        ("train", "APTTrain", {"steps": [[2, 3]]}),
        ("options", "APTMethodOptions", {"temperature": [[1]]}),
        ("image_set", "APTImageSet", {"folder": [5]}),
        ("load_run", "APTLoadRun", {"run": 5}),
    ],
)
def test_a_node_refuses_what_came_by_a_wire_as_it_refuses_what_is_typed(
    module: str, name: str, wired: dict[str, Any]
) -> None:
    """The host checks no ranges and choices of what is wired, and no lists and objects that a script sends."""
    with node_modules("boundary", module) as (boundary, loaded):
        boundary.translated = str
        node = boundary.speaks_plainly(getattr(loaded, name))
        ((slot, value),) = wired.items()
        shown = repr(value[0] if isinstance(value, list) else value)
        with pytest.raises(ValueError, match=rf"^{slot} is {re.escape(shown)}: (give a number|give a text|choose one)"):
            node.execute(**wired)


def test_a_null_of_a_script_counts_as_not_given() -> None:
    with node_modules("checks") as (checks,):
        given = {"preset": [None], "steps": [0], "images": [1, 2], "captions": []}
        assert checks.single(given, "images") == {"steps": 0, "images": 1}

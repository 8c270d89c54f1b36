"""What training holds of the host's memory when it fails. Not here: after whole runs (`tests/host/test_memory.py`)."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from .node_modules import node_module


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("comfy", "comfy.model_management"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    with node_module("host.memory") as module:
        yield module


def test_pinned_memory_is_given_back_once_nothing_is_under_way(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes, where blocks or encoders have waited. The host's own call waits for the device."""
    order: list[str] = []
    monkeypatch.setattr(memory.comfy.model_management, "soft_empty_cache", lambda: order.append("device"))
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: order.append("pinned"), raising=False)
    with memory.training_room():
        order.clear()
    assert order == ["device", "pinned"]
    monkeypatch.delattr(torch._C, "_host_emptyCache")
    with memory.training_room():
        pass


class Model: ...


def test_an_error_that_the_host_still_reports_keeps_no_model(memory: Any) -> None:
    """Nor does the one that it was raised for: the next run needs the room."""
    models: list[weakref.ref[Model]] = []

    def fail(error: Exception) -> None:
        model = Model()
        models.append(weakref.ref(model))
        raise error

    def train() -> None:
        try:
            fail(KeyError())
        except KeyError:
            fail(ValueError())

    with pytest.raises(ValueError) as reported, memory.training_room():
        train()
    assert reported.value.__context__ is not None
    assert [model() for model in models] == [None, None]

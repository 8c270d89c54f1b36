"""A clone whose requirements were never installed: the nodes say so, with the command, before anything is done."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.node_modules import ROOT, node_module


@pytest.fixture
def requirements() -> Iterator[Any]:
    with node_module("host.requirements") as module:
        yield module


def hide(requirements: Any, monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in hidden else real(name))
    loaded = {name: module for name, module in sys.modules.items() if name not in hidden}
    monkeypatch.setattr(requirements, "sys", SimpleNamespace(modules=loaded, executable=sys.executable))


def test_what_is_installed_is_not_mentioned(requirements: Any) -> None:
    requirements.check_installed()


def test_a_stand_in_without_a_place_counts_as_there(requirements: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find_spec` itself raises for one."""
    monkeypatch.setitem(sys.modules, "psutil", ModuleType("psutil"))
    requirements.check_installed()


@pytest.mark.parametrize(("python", "flag"), [("/x/python", ""), ("C:\\ComfyUI\\python_embeded\\python.exe", " -s")])
def test_what_is_missing_is_named_with_the_command(
    requirements: Any, monkeypatch: pytest.MonkeyPatch, python: str, flag: str
) -> None:
    hide(requirements, monkeypatch, "peft", "PIL")
    monkeypatch.setattr(requirements.sys, "executable", python)
    with pytest.raises(requirements.InputError) as caught:
        requirements.check_installed()
    command = f'"{python}"{flag} -m pip install -r "{ROOT / "requirements.txt"}"'
    assert str(caught.value) == f"APT Train needs peft, pillow: run {command}, then restart ComfyUI."

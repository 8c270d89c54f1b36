"""A clone whose requirements were never installed: the nodes say so, with the command, before anything is done."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`nodes/host/requirements.py` as the host loads it, without what needs the host beside it."""
    folders = {"pack_under_test": ROOT, "pack_under_test.nodes": ROOT / "nodes"}
    for name, folder in {**folders, "pack_under_test.nodes.host": ROOT / "nodes" / "host"}.items():
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("pack_under_test.nodes.host.requirements")
    for name in [name for name in sys.modules if name.startswith("pack_under_test.")]:
        del sys.modules[name]


def hide(requirements: Any, monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in hidden else real(name))


def test_what_is_installed_is_not_mentioned(requirements: Any) -> None:
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

"""A host that is too old, or a clone whose requirements were never installed: the pack says so, with the remedy."""

from __future__ import annotations

import asyncio
import importlib.util
import re
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
    assert str(caught.value) == f"APT Train needs pillow, peft: run {command}, then restart ComfyUI."


@pytest.mark.parametrize("version", ["0.3.65", "0.14.1", "0.9"])
def test_a_host_that_is_too_old_is_refused_with_both_versions(
    requirements: Any, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    said = f"APT Train needs ComfyUI 0.15 or newer, and this is {version}: update ComfyUI."
    with pytest.raises(requirements.InputError, match=re.escape(said)):
        requirements.check_host()


@pytest.mark.parametrize(
    "host", [SimpleNamespace(__version__=v) for v in ("0.15", "0.33.0", "1.0", "git")] + [SimpleNamespace(), None]
)
def test_a_newer_host_is_accepted_and_one_that_does_not_tell(
    requirements: Any, monkeypatch: pytest.MonkeyPatch, host: Any
) -> None:
    monkeypatch.setitem(sys.modules, "comfyui_version", host)
    requirements.check_host()


def test_a_host_is_told_when_it_asks_for_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__="0.14.1"))
    latest = SimpleNamespace(ComfyExtension=object, io=None)
    monkeypatch.setitem(sys.modules, "comfy_api", SimpleNamespace(latest=latest))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    with node_module("__init__") as nodes, pytest.raises(ValueError, match="this is 0.14.1"):
        asyncio.run(nodes.comfy_entrypoint())


def test_every_page_names_the_same_oldest_host(requirements: Any) -> None:
    oldest = ".".join(map(str, requirements.OLDEST))
    assert f'requires-comfyui = ">={oldest}.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for page in ("README.md", "docs/start.md"):
        assert f"ComfyUI {oldest} or newer" in (ROOT / page).read_text(encoding="utf-8"), page

"""What the nodes say of themselves, read without the host; `python -m tests.node_texts` rewrites locales/en from it.

The nodes' modules are imported as the host imports them, with a `comfy_api` that only remembers what a schema is given.
Whatever else they import beyond the standard library (torch, the host, the trainer but its settings) is a stand-in that
refuses to become text, so that reading costs no more than this pack's own files.

In: schemas, and the format of `nodeDefs.json`. Not in: whether the host understands the schemas (`tests/host`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCALES = ROOT / "locales"
ENGLISH = LOCALES / "en" / "nodeDefs.json"
PACK = "texts_of"
OWN = {
    PACK,
    f"{PACK}.apt_train",
    *(
        f"{PACK}.apt_train.{name}"
        for name in (
            "adapter_kinds",
            "config",
            "errors",
            "lora_check",
            "lora_check.asked",
            "names",
            "optimizers",
            "paths",
            "presets",
            "settings_field",
        )
    ),
}


# ---- what a schema is given --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """An input or output. `more`: its further keywords (default, options, min ...)."""

    kind: str  # IMAGE, COMBO, APT_RUN ... as the module calls it
    id: str
    name: str  # what the editor shows
    tooltip: str
    more: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """`min`, `options` and the like, which the host's own inputs have too."""
        if name not in vars(self).get("more", ()):
            raise AttributeError(name)
        return self.more[name]


@dataclass(frozen=True)
class Node:
    """One node's schema."""

    node_id: str
    display_name: str
    description: str
    inputs: list[Slot]
    outputs: list[Slot]
    deprecated: bool = False  # the editor's search does not find it
    is_input_list: bool = False


@cache
def nodes() -> dict[str, Node]:
    """Every node of the pack by its id, in the pack's order."""
    with _remembering_host():
        return {schema.node_id: schema for schema in _schemas()}


def asked_at_start() -> set[str]:
    """The trainer's modules, `config` say, that the list of nodes with its schemas asks for, directly or not."""
    inside = f"{PACK}.apt_train."
    with _remembering_host():
        _schemas()
        return {name.removeprefix(inside) for name in sys.modules if name.startswith(inside)}


def _schemas() -> list[Node]:
    return [node.define_schema() for node in node_classes()]


def node_classes() -> list[Any]:
    """The pack's nodes as the host gets them; to be called where `node_modules` lasts."""
    return _answer(importlib.import_module(f"{PACK}.nodes").AptTrainExtension().get_node_list())


def node_defs() -> dict[str, Any]:
    """The nodes' texts as `locales/LANGUAGE/nodeDefs.json` holds them."""
    return {
        node.node_id: {
            "display_name": node.display_name,
            "description": node.description,
            "inputs": {slot.id: {"name": slot.name, "tooltip": slot.tooltip} for slot in node.inputs},
            "outputs": {str(i): {"name": slot.name, "tooltip": slot.tooltip} for i, slot in enumerate(node.outputs)},
        }
        for node in nodes().values()
    }


def english_text() -> str:
    """`locales/en/nodeDefs.json` as it should be."""
    return json.dumps(node_defs(), indent=2, ensure_ascii=False) + "\n"


def rewrite() -> None:
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(english_text(), encoding="utf-8")


@contextlib.contextmanager
def node_modules(*names: str) -> Iterator[list[Any]]:
    """Modules of `nodes/` with the host that only remembers, `settings` say, as long as it lasts."""
    with _remembering_host():
        yield [importlib.import_module(f"{PACK}.nodes.{name}") for name in names]


# ---- comfy_api, which only remembers -----------------------------------------------------------------------------


class _Kind:
    """A type of the host's `io`, with its inputs and outputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> _Kind:
        return _Kind(name)  # a member of an enumeration

    def Input(self, id: str, types: Sequence[Any] = (), *, tooltip: str = "", **more: Any) -> Slot:
        name = more.pop("display_name", None) or id
        assert not types or self.name == "MultiType", f"{id}: keywords alone are remembered here"
        return Slot(self.name, id, name, tooltip, more)

    def Output(self, id: str, *, tooltip: str = "", display_name: str | None = None, **more: Any) -> Slot:
        return Slot(self.name, id, display_name or id, tooltip, more)


class _Io(ModuleType):
    ComfyNode = object

    def __getattr__(self, name: str) -> _Kind:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kind(name)

    @staticmethod
    def Custom(name: str) -> _Kind:
        return _Kind(name)

    @staticmethod
    def Schema(
        *, node_id: str, display_name: str, description: str, inputs: list[Slot], outputs: list[Slot], **more: Any
    ) -> Node:
        flags = bool(more.get("is_deprecated")), bool(more.get("is_input_list"))
        return Node(node_id, display_name, description, list(inputs), list(outputs), *flags)


# ---- stand-ins for everything else -------------------------------------------------------------------------------


class _Anything:
    """Whatever a stand-in's name may mean; it can be called, subclassed and used in a type, and is no text."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self._where}.{name}")

    def __call__(self, *_arguments: Any, **_named: Any) -> _Anything:
        return _Anything(f"{self._where}()")

    def __getitem__(self, _key: Any) -> _Anything:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())  # a folder's files, say

    def __or__(self, _other: Any) -> _Anything:
        return self

    __ror__ = __or__

    def __mro_entries__(self, _bases: Any) -> tuple[type, ...]:
        return ()

    def __str__(self) -> str:
        raise AssertionError(f"a node's text is made with {self._where}: name its module in OWN, so that it is real")

    __repr__ = __str__

    def __format__(self, _spec: str) -> str:
        return str(self)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for every module but the standard library's and the nodes' own."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        ours = name in OWN or name == f"{PACK}.nodes" or name.startswith(f"{PACK}.nodes.")
        if ours or name.partition(".")[0] in sys.stdlib_module_names:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        if spec.name == "comfy_api.latest":
            module.__dict__.update(io=_Io("io"), ui=SimpleNamespace(), ComfyExtension=object)
        if spec.name == "folder_paths":  # a host in whose folders nothing lies
            module.__dict__.update(get_input_subfolders=list, get_output_directory=lambda: str(ROOT / "no host"))
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextlib.contextmanager
def _remembering_host() -> Iterator[None]:
    """Inside, imports find the stand-ins; afterwards none of them, and nothing imported with them, is left."""
    before, finder = dict(sys.modules), _Finder()
    for name, folder in ((PACK, ROOT), (f"{PACK}.apt_train", ROOT / "apt_train")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if name not in before and (name.startswith(PACK) or isinstance(module, _StandIn)):
                del sys.modules[name]
                _forget(name, module)


def _forget(name: str, module: ModuleType) -> None:
    """Take a module off the real package that it was imported under."""
    parent, _, child = name.rpartition(".")
    if getattr(sys.modules.get(parent), child, None) is module:
        delattr(sys.modules[parent], child)


def _answer(coroutine: Any) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the list of nodes waits for something")


if __name__ == "__main__":
    rewrite()

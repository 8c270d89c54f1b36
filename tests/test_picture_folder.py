"""Which folders of pictures a node may read: all on a machine of one's own, the host's own where others can ask too.

Not here: the node on a real host (`tests/host/test_image_set.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .node_modules import node_module

OUTSIDE = "outside the folders of a ComfyUI"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("input/toys", "output/drawn", "temp", "elsewhere/toys", "allowed/toys"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "input" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return tmp_path


@pytest.fixture
def folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`host.folders` in a host that listens at the given addresses."""
    paths: Any = ModuleType("folder_paths")
    options: Any = ModuleType("comfy.cli_args")
    paths.annotated_filepath = annotated(home)
    for name in ("input", "output", "temp"):
        setattr(paths, f"get_{name}_directory", lambda name=name: str(home / name))
    for name, module in {"folder_paths": paths, "comfy": ModuleType("comfy"), "comfy.cli_args": options}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("APT_TRAIN_FOLDERS", raising=False)
    with node_module("host.folders") as module:

        def listening(addresses: str) -> Any:
            options.args = SimpleNamespace(listen=addresses)
            return module

        yield listening


def annotated(home: Path) -> Callable[[str], tuple[str, str | None]]:
    """As the host's own."""

    def split(name: str) -> tuple[str, str | None]:
        for kind in ("output", "input", "temp"):
            if name.endswith(f"[{kind}]"):
                return name.removesuffix(f"[{kind}]"), str(home / kind)
        return name, None

    return split


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0,::"])
def test_the_hosts_own_folders_are_read_by_name_and_by_path(
    listen: str, home: Path, folders: Callable[[str], Any]
) -> None:
    read = folders(listen).picture_folder
    assert read("toys") == read(" toys ") == read("./toys/../toys") == read(str(home / "input/toys"))
    assert read("toys") == home / "input/toys"
    assert read(f' "{home / "input/toys"}" ') == home / "input/toys", "as Windows copies a path"
    assert read("drawn [output]") == home / "output/drawn"


def test_on_a_machine_of_ones_own_any_folder_is_read(
    home: Path, folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    read = folders("127.0.0.1,::1,localhost").picture_folder
    assert read(str(home / "elsewhere")) == read("~/elsewhere") == read("../elsewhere") == home / "elsewhere"
    assert read("link").resolve() == home / "elsewhere"


@pytest.mark.parametrize("listen", ["0.0.0.0", "0.0.0.0,::", "127.0.0.1, 192.168.1.5", "comfy.example.org"])
def test_where_others_can_ask_nothing_else_is(listen: str, home: Path, folders: Callable[[str], Any]) -> None:
    """Nor is it said whether it exists."""
    from apt_train.errors import InputError

    module = folders(listen)
    for path in (home / "elsewhere", home / "nowhere", "~", "../elsewhere", "toys/../../elsewhere", "link/toys", "/"):
        with pytest.raises(ValueError, match=OUTSIDE) as caught:
            module.picture_folder(str(path))
        assert type(caught.value).__name__ == InputError.__name__


def test_where_others_can_ask_nothing_outside_is_even_looked_at(
    home: Path, folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would log in to the server of `\\\\server\\share`, with the password's hash."""
    read, looked_at = folders("0.0.0.0").picture_folder, list[str]()
    for name in ("stat", "lstat", "readlink", "scandir", "listdir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name), looked_at))
    for path in (home / "elsewhere" / "toys", "../elsewhere"):
        with pytest.raises(ValueError, match=OUTSIDE):
            read(str(path))
    assert [path for path in looked_at if "elsewhere" in path] == []
    assert read("toys") == home / "input/toys" and any("toys" in path for path in looked_at)


def noting(real: Callable[..., Any], places: list[str]) -> Callable[..., Any]:
    def look(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        places.append(str(path))
        return real(path, *arguments, **named)

    return look


def test_the_environment_names_further_folders(
    home: Path, folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_TRAIN_FOLDERS", os.pathsep.join([str(home / "allowed"), str(home / "missing"), ""]))
    read = folders("0.0.0.0").picture_folder
    assert read(str(home / "allowed/toys")) == home / "allowed/toys"
    for path in (home / "elsewhere", home / "allowed/../elsewhere", home / "allowed_too"):
        with pytest.raises(ValueError, match=OUTSIDE):
            read(str(path))

"""The tests on a real ComfyUI: skipped where there is none; one host process per test file, on a folder of its own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dev

from . import checkpoints as tiny
from .server import Host

CACHE = dev.ROOT / ".cache" / "host"


@pytest.fixture
def reachable() -> set[str]:
    """The host is spoken to; any other address still fails the test."""
    return {"127.0.0.1"}


@pytest.fixture(scope="session", autouse=True)
def place() -> tuple[Path, str]:
    """The host's folder and its Python."""
    found = dev.find_host()
    if found is None:
        pytest.skip("no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI)")
    return found


@pytest.fixture(scope="session")
def checkpoints(place: object) -> dict[str, Path]:
    """The tiny checkpoints by kind, fp16 with TAESD; `sd15_kl` has the usual autoencoder. Written once, then kept."""
    return {**{kind: cached(kind) for kind in tiny.KINDS}, "sd15_kl": cached("sd15", vae="kl")}


@pytest.fixture(scope="module")
def folder(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A host's folder that knows the checkpoints as sd15.safetensors and so on; with the test file's NODE, if any."""
    folder = tmp_path_factory.mktemp("host")
    link_checkpoints(folder, checkpoints)
    if node := getattr(request.module, "NODE", None):
        home = folder / "custom_nodes" / Path(node).stem
        home.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name(node), home / "__init__.py")
    return folder


@pytest.fixture(scope="module")
def host(place: tuple[Path, str], folder: Path) -> Iterator[Host]:
    """A running host on that folder."""
    with Host(folder, *place) as running:
        yield running


def link_checkpoints(folder: Path, checkpoints: dict[str, Path]) -> None:
    """Into the models of a host's folder, as KIND.safetensors."""
    models = folder / "models" / "checkpoints"
    models.mkdir(parents=True)
    for kind, path in checkpoints.items():
        link(models / f"{kind}.safetensors", path)


def link(name: Path, target: Path) -> None:
    """A hard link, or a symbolic one where the two lie on different disks."""
    try:
        name.hardlink_to(target)
    except OSError:
        name.symlink_to(target)


def cached(kind: str, vae: str = "taesd") -> Path:
    """Named after the writer's own text, so that a change there makes new files; older ones go."""
    text = Path(tiny.__file__).read_bytes()
    stem = f"{kind}_{vae}"
    path = CACHE / f"{stem}-{hashlib.sha256(text).hexdigest()[:12]}.safetensors"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in set(CACHE.glob(f"{stem}-*.safetensors")) - {path}:
            old.unlink(missing_ok=True)
        tiny.write_checkpoint(path, kind, vae=vae)
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """The end of the host's log goes with every failure."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.failed and isinstance(host, Host):
        report.sections.append(("ComfyUI's log", host.log_text()[-6000:]))
    return report

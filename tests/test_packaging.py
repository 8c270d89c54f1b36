"""What is shipped: the wheel's content, the versions asked for, and lists that must agree with one another.

Not here: whether the code runs on those versions; `python dev.py test --oldest` shows that.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import apt_train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "apt_train"
MODULE_OF = {"pillow": "PIL"}  # where the import is called otherwise than the distribution
OLDEST = (
    "diffusers",
    "transformers",
    "peft",
    "filelock",
    "safetensors",
    "numpy",
    "pillow",
    "matplotlib",
    "tqdm",
    "psutil",
)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def split(requirement: str) -> tuple[str, str]:
    """Name and version range."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[.*\])?\s*([^;]*?)\s*(?:;.*)?", requirement)
    assert match is not None, requirement
    return match[1].lower(), match[2]


def dependencies() -> dict[str, str]:
    return dict(split(requirement) for requirement in project()["dependencies"])


def lines(path: str) -> list[str]:
    """A requirements file without comments and options."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith(("#", "-"))]


def pins(path: str) -> dict[str, set[str]]:
    """Of a constraints file: every version named for a distribution."""
    found: dict[str, set[str]] = {}
    for name, version in map(split, lines(path)):
        found.setdefault(name, set()).add(version)
    return found


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.lstrip(">=").split("."))


# ---- versions --------------------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert project()["version"] == apt_train.__version__ == newest[1]


def test_dependencies_leave_room_for_a_host() -> None:
    """Lower bounds only: a pin or an upper bound would change or break an install that brings its own versions."""
    assert {name for name, wanted in dependencies().items() if not re.fullmatch(r">=[0-9.]+", wanted)} == set()


def test_the_name_is_ours_alone() -> None:
    assert "comfyui" not in project()["name"].lower()


def test_requirements_are_the_dependencies_without_torch() -> None:
    assert lines("requirements.txt") == [line for line in project()["dependencies"] if split(line)[0] != "torch"]


def test_what_a_host_brings_is_decided_first() -> None:
    """In its order pip and uv decide, and would replace a host's transformers to suit the newest diffusers."""
    assert set(list(dependencies())[-3:]) == {"diffusers", "peft", "matplotlib"}, "ComfyUI asks for all others itself"


def test_every_import_is_a_declared_dependency() -> None:
    declared = {MODULE_OF.get(name, name) for name in dependencies()}
    # tokenizers is transformers' own part, always beside it
    known = declared | {"apt_train", "tokenizers"} | set(sys.stdlib_module_names)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= known, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in known, path.name


def test_every_dependency_is_imported() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for name in dependencies():
        module = MODULE_OF.get(name, name)
        assert re.search(rf"^\s*(?:from|import) {module}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("name", OLDEST)
def test_the_oldest_environment_is_what_pyproject_admits(name: str) -> None:
    """The lower bound is the version tested; another pin only for Pythons that the oldest has no wheel for."""
    asked, tested = version(dependencies()[name]), {version(pin) for pin in pins("constraints/oldest.txt")[name]}
    assert min(tested)[: len(asked)] == asked
    assert not any(min(tested)[len(asked) :]), "name the bound to its last digit, or test its first release"


def test_the_test_environment_is_pinned() -> None:
    pinned = pins("constraints/common.txt") | pins("constraints/test.txt")
    tools = [line for extra in project()["optional-dependencies"].values() for line in extra]
    wanted = {**dependencies(), **dict(map(split, tools))}
    for name, bound in wanted.items():
        assert name in pinned, name
        assert all(pin.startswith("==") and version(pin) >= version(bound) for pin in pinned[name]), name
    assert pinned["torch"] == {"==2.13.0"}


# ---- the wheel -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy beside folders that must stay out, with the build tool already here (no network).

    Not by pip: some of its versions hide what the build tool warns of, such as what a later one will leave out.
    """
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, source / "apt_train", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / name, source)
    for name in ("tests", "nodes", "benchmarks"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_wheel_holds_apt_train_alone_and_all_of_it(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert shipped == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"apt_train/py.typed", "apt_train/config.py"} <= shipped
    assert any(name.startswith("apt_train/assets/") for name in shipped)


def test_the_wheel_has_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    info = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "apt-train = apt_train.cli:main" in wheel.read(info["entry_points.txt"]).decode()
    assert "Apache License" in wheel.read(info["licenses/LICENSE"]).decode()

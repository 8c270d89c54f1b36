"""README and CONTRIBUTING say what is true: the options, the tree, the links, the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apt_train.cli import build_parser

from .readme_options import options_text, readme_text

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tree() -> list[tuple[int, str]]:
    """Indentation and name of the entries of CONTRIBUTING's tree: what has a description, and folders alone."""
    block = read("CONTRIBUTING.md").partition("## The tree")[2].split("```")[1]
    entries = re.findall(r"^( *)(\S+/(?=$)|\S+(?= {2,}\S))", block, re.MULTILINE)
    return [(len(indent), name) for indent, name in entries]


def test_the_readme_lists_every_option_as_it_is() -> None:
    assert readme_text() == options_text(), "run `python -m tests.readme_options`"


@pytest.mark.parametrize("top", ["apt_train/", "nodes/", "benchmarks/quality/"])
def test_the_tree_names_every_module_and_no_other(top: str) -> None:
    named, rooms = [], [""]
    for indent, name in tree():
        rooms = [*rooms[: indent // 2], name]
        if rooms[0] == top and indent and not name.endswith("/"):
            named.append("".join(rooms[1:]))
    source = ROOT / top
    modules = {path.relative_to(source).as_posix() for path in (*source.rglob("*.py"), *source.rglob("py.typed"))}
    assert set(named) == modules
    assert len(named) == len(set(named))


def test_everything_in_the_tree_exists() -> None:
    assert [name for indent, name in tree() if indent == 0 and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    shown = re.sub(r"<!--.*?-->", "", read(name), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", shown)
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_commands_in_the_readme_parse() -> None:
    """Every `apt-train` line of the README is one that the command line takes."""
    shown = re.findall(r"^(?:apt-train|python -m apt_train) +(.+?)(?: +#.*)?$", read("README.md"), re.MULTILINE)
    assert len(shown) >= 4
    for line in shown:
        build_parser().parse_args(line.split())

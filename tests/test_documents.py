"""README, CONTRIBUTING and the pages in docs/ say what is true, and read well.

Options, tree, links, commands and names are looked up, sentences are measured. Not here: the built site (`dev.py
docs`).
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from apt_train.cli import build_parser

from .options_page import options_text, page_text
from .prose import prose

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)
HELP = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "web" / "docs").glob("*.md"))
IN_THE_SITE_ALONE = "--8<--"  # such a page is another file's text
WITH_TEXT = [name for name in PAGES if not (ROOT / name).read_text(encoding="utf-8").startswith(IN_THE_SITE_ALONE)]
# The log keeps what was written at the time; the benchmark's pages are made with their tables.
MEASURED = [
    "README.md",
    *(name for name in WITH_TEXT if not name.startswith(("docs/log", "docs/benchmark"))),
    *HELP,
]
COMMANDS = re.compile(r"^(?:apt-train|python -m apt_train) +(.+?)(?: +#.*)?$", re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def lines(name: str) -> list[str]:
    return read(name).splitlines()


def tree() -> list[tuple[int, str]]:
    """Indentation and name of the entries of CONTRIBUTING's tree: what has a description, and folders alone."""
    block = read("CONTRIBUTING.md").partition("## The tree")[2].split("```")[1]
    entries = re.findall(r"^( *)(\S+/(?=$)|\S+(?= {2,}\S))", block, re.MULTILINE)
    return [(len(indent), name) for indent, name in entries]


def test_the_options_page_lists_every_option_as_it_is() -> None:
    assert page_text() == options_text(), "run `python -m tests.options_page`"


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
    """And every benchmark is in it."""
    named = {name for indent, name in tree() if indent == 0}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.py")} <= named
    assert [name for indent, name in tree() if indent == 0 and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """To a file, and to a heading in it."""
    shown = re.sub(r"<!--.*?-->|^```.*?^```", "", read(name), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", shown)
    assert [link for link in links if not _leads_somewhere(ROOT / name, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not heading or heading in _anchors(target))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", *WITH_TEXT])
def test_commands_shown_are_ones_that_the_command_line_takes(name: str) -> None:
    for line in COMMANDS.findall(read(name)):
        build_parser().parse_args(shlex.split(line))


def test_the_readme_shows_how_to_start() -> None:
    """Of the trainer and of the workshop; all that it says is little enough to read."""
    shown = COMMANDS.findall(read("README.md"))
    assert {line.split()[0] for line in shown} == {"check", "run", "resume", "report", "inspect", "demo"}
    assert {"python dev.py demo", "python dev.py test"} <= {line.partition("  ")[0] for line in lines("README.md")}
    assert len(lines("README.md")) <= 150


def test_every_function_that_the_method_page_names_exists() -> None:
    names = re.findall(r"`(apt_train(?:\.\w+)+)`", read("docs/method.md"))
    assert len(set(names)) > 15
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", MEASURED)
def test_pages_read_as_a_native_engineer_writes(name: str) -> None:
    """The yardstick is nanochat's README: 19 words a sentence, 16% over 30, fewer than 2 semicolons per thousand."""
    found = prose(read(name))
    assert found.mean <= 19 and found.long <= 0.16 and found.semicolons < 2
    assert found.stilted == []


BENCHMARK = [name for name in PAGES if name.startswith("docs/benchmark")]


@pytest.mark.parametrize("name", ["CHANGELOG.md", "apt_train/assets/drawn_world/README.md", *BENCHMARK])
def test_pages_beside_those_use_the_same_words(name: str) -> None:
    written = re.sub(r"<!-- table: .*?<!-- end -->", "", read(name), flags=re.DOTALL)  # the rest is made from units
    assert prose(written).stilted == []


def test_prose_is_measured_as_it_reads() -> None:
    page = (
        "# Not a sentence; at all\n\nFour words stand here. `code; code` and then six words more.\n\n"
        f"- An item of\n  five words\n- {'many ' * 31}\n\n| a cell; one | .5 comes to |\n\n```\ncode; .5\n```\n"
    )
    found = prose(page)
    assert found.sentences == [4, 6, 5, 31]
    assert found.mean == 11.5 and found.long == 0.25
    assert found.semicolons == pytest.approx(1000 / len(found.text.split()))
    assert found.stilted == ["comes to", ".5"]

"""Whatever is written is written whole: no code writes a file but through the atomic writer of `files`.

Not here: that the atomic writer is one (`test_files`), and what a killed run comes to (`test_kill`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for place in ("apt_train/**/*.py", "nodes/**/*.py", "benchmarks/*.py", "benchmarks/quality/*.py")
    for path in sorted(ROOT.glob(place))
]
WRITERS = {"write_text", "write_bytes", "savefig", "save", "save_file", "tofile", "touch", "symlink_to", "hardlink_to"}
MODULES = {
    f"{module}.{name}"
    for module, names in {
        "shutil": ("copy", "copy2", "copyfile", "copytree", "move", "make_archive"),
        "json": ("dump",),
        "np": ("save", "savez", "savetxt"),
        "numpy": ("save", "savez", "savetxt"),
        "os": ("open", "link", "symlink", "mkfifo", "truncate"),
    }.items()
    for name in names
}
WRITING_MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]{1,4}")


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file, by its name and mode. A picture saved into a `buffer` does not."""
    name = ast.unparse(call.func)
    first = ast.unparse(call.args[0]) if call.args else ""
    if name in MODULES:
        return True
    if name.split(".")[-1] in WRITERS and name != "write_text":  # which is the one of `files`
        return first != "buffer"
    if name.split(".")[-1] == "open" or first == "open":
        values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        return any(isinstance(v, ast.Constant) and WRITING_MODE.fullmatch(str(v.value)) for v in values)
    return False


def unguarded(tree: ast.AST) -> Iterator[str]:
    """Calls that write beside the atomic writer: `FUNCTION: CALL`."""
    handed = {
        argument.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "atomic_write"
        for argument in node.args
        if isinstance(argument, ast.Name)
    }

    def walk(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "atomic_write":
            return
        if isinstance(node, ast.With) and any("atomic_folder(" in ast.unparse(item) for item in node.items):
            return
        if isinstance(node, ast.FunctionDef):
            if node.name in handed:
                return
            function = node.name
        if isinstance(node, ast.Call) and writes(node):
            yield f"{function}: {ast.unparse(node)}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(tree, "")


def test_every_file_is_written_atomically() -> None:
    """But for the log, which a step appends a line to: a line cut short is left out by whoever reads it.

    And for locks, which have to appear at once or not at all, and for the device that keeps nothing.
    """
    assert len(SOURCES) > 80
    found = {
        path.relative_to(ROOT).as_posix(): list(unguarded(ast.parse(path.read_text(encoding="utf-8"))))
        for path in SOURCES
        if path != ROOT / "apt_train" / "disk" / "files.py"
    }
    calls = [f"{path}: {call}" for path, calls in found.items() for call in calls]
    named = (
        "apt_train/run/log.py: append: open(path, 'ab')",
        "apt_train/run/lock.py: ",
        "apt_train/console/terminal.py: ",
        "apt_train/disk/silenced.py: stderr_silenced: open(os.devnull, 'wb')",
    )
    excepted = [call for call in calls if call.startswith(named)]
    assert len(excepted) == 6, "the exceptions are named here"
    assert [call for call in calls if call not in excepted] == []


@pytest.mark.parametrize(
    "code",
    [
        "path.write_text(text)",
        "path.write_bytes(data)",
        "figure.savefig(folder / 'a.png')",
        "picture.save(path, format='PNG')",
        "save_file(tensors, path)",
        "json.dump(values, file)",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('r+')",
        "patiently(open, path, 'a', encoding='utf-8')",
        "shutil.copyfile(a, b)",
        "os.open(path, flags)",
        "def write(path):\n    path.write_text('')",
        "with folder as draft:\n    (draft / 'a').write_text('')",
    ],
)
def test_the_rule_sees_a_write(code: str) -> None:
    assert len(list(unguarded(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "open(path)",
        "path.open('rb')",
        "safe_open(path, 'pt')",
        "write_text(path, text)",
        "Image.open(path)",
        "picture.save(buffer, format='JPEG')",
        "atomic_write(path, lambda draft: draft.write_text(text))",
        "def write(path):\n    path.write_text('')\natomic_write(target, write)",
        "with atomic_folder(path) as draft:\n    (draft / 'a').write_text('')",
    ],
)
def test_the_rule_lets_the_rest_pass(code: str) -> None:
    assert list(unguarded(ast.parse(code))) == []

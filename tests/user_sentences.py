"""The sentences that a user may read, found in the source: what is raised as an InputError or told as a notice.

In: reading f-strings, names and small helper functions as far as they can be known without running anything. What
differs from case to case becomes `HOLE`. Not in: which of them are translated (`test_translated`).
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOLE = "\N{DOTTED SQUARE}"
MOST = 64  # variants of one sentence


@dataclass(frozen=True)
class Sentence:
    """Where it stands, and one of its forms."""

    file: str
    line: int
    text: str


@dataclass
class Scope:
    """What names stand for in a function, in the module around it, and what the module's functions return."""

    names: dict[str, list[ast.expr]]
    functions: dict[str, ast.FunctionDef]
    seen: frozenset[str] = field(default_factory=frozenset)

    def without(self, name: str) -> Scope:
        return Scope(self.names, self.functions, self.seen | {name})


def sentences(path: Path, root: Path, picks: Callable[[ast.Call], ast.expr | None]) -> Iterator[Sentence]:
    """Of every call in a file of which `picks` gives the argument that holds the text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    outer = assigned([node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))])
    for owner, call in calls(tree):
        text = picks(call)
        if text is None:
            continue
        inner = assigned([owner]) if owner is not None else {}
        scope = Scope({**outer, **inner}, functions)
        for form in forms(text, scope)[:MOST]:
            yield Sentence(path.relative_to(root).as_posix(), call.lineno, form)


def calls(tree: ast.AST, owner: ast.FunctionDef | None = None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Call):
            yield owner, child
        yield from calls(child, child if isinstance(child, ast.FunctionDef) else owner)


def assigned(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """Names that are given a value there, and the values; `+=` counts as the whole new value."""
    found: dict[str, list[ast.expr]] = {}
    for node in itertools.chain.from_iterable(map(ast.walk, body)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pair(target, node.value, found)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            before = list(found.get(node.target.id, []))
            found.setdefault(node.target.id, []).extend(ast.BinOp(value, ast.Add(), node.value) for value in before)
        elif isinstance(node, ast.NamedExpr):
            pair(node.target, node.value, found)
    return found


def pair(target: ast.expr, value: ast.expr, found: dict[str, list[ast.expr]]) -> None:
    if isinstance(target, ast.Name):
        found.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=False):
            pair(one, its, found)


def forms(node: ast.expr, scope: Scope) -> list[str]:
    """The texts an expression may be; `[HOLE]` where that cannot be known."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return joined([forms(part, scope) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        plain = node.format_spec is None and node.conversion == -1
        return forms(node.value, scope) if plain else [HOLE]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return joined([forms(node.left, scope), forms(node.right, scope)])
    if isinstance(node, ast.IfExp):
        return [*forms(node.body, scope), *forms(node.orelse, scope)]
    if isinstance(node, ast.BoolOp):
        return [form for value in node.values for form in forms(value, scope)]
    if isinstance(node, ast.Name) and node.id not in scope.seen:
        known = scope.names.get(node.id, [])
        return unique([form for value in known for form in forms(value, scope.without(node.id))]) or [HOLE]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in scope.functions:
        return returned(node.func.id, scope)
    return [HOLE]


def returned(name: str, scope: Scope) -> list[str]:
    """What a function of the module returns, its arguments being unknown."""
    if name in scope.seen:
        return [HOLE]
    body = scope.functions[name].body
    inner = Scope({**scope.names, **assigned(body)}, scope.functions, scope.seen | {name})
    given = {argument.arg for argument in scope.functions[name].args.args}
    inner.names = {key: value for key, value in inner.names.items() if key not in given}
    values = [node.value for node in itertools.chain.from_iterable(map(ast.walk, body)) if isinstance(node, ast.Return)]
    return unique([form for value in values if value is not None for form in forms(value, inner)]) or [HOLE]


def joined(parts: list[list[str]]) -> list[str]:
    return unique(["".join(chosen) for chosen in itertools.islice(itertools.product(*parts), MOST)])


def unique(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def of_input_error(call: ast.Call) -> ast.expr | None:
    """The sentence of `InputError(...)`."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    return call.args[0] if name == "InputError" and call.args else None

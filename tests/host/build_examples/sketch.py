"""A workflow as it is meant, and the real editor made to draw it: nodes, wires and groups, laid out left to right.

In: describing and drawing. Not in: which workflows there are (`examples`), the editor's page (`editor`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..editor import Editor

FOLDED = (230, 30)  # pixels that a node takes of which the title alone shows


@dataclass(frozen=True)
class Wire:
    """An output of a node, to be given to another's input."""

    node: int
    output: str


@dataclass(frozen=True)
class Box:
    """A node; `box["IMAGE"]` is the output of that name. `number` is its id in the editor."""

    number: int

    def __getitem__(self, output: str) -> Wire:
        return Wire(self.number, output)


@dataclass
class Sketch:
    """Nodes with their wires, and the groups they stand in, by columns from left to right."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    groups: list[list[dict[str, Any]]] = field(default_factory=list)

    def node(
        self, node_type: str, inputs: dict[str, Any] | None = None, *, title: str = "", size: tuple[int, int] = (0, 0),
        folded: bool = False, **properties: Any,
    ) -> Box:  # fmt: skip
        """`inputs`: wires and widgets' values by name; `size`: at least; `folded`: its title alone shows."""
        inputs = inputs or {}
        wires = {name: [value.node, value.output] for name, value in inputs.items() if isinstance(value, Wire)}
        widgets = {name: value for name, value in inputs.items() if not isinstance(value, Wire)}
        about = {"type": node_type, "title": title, "size": size, "folded": folded, "properties": properties}
        self.nodes.append({**about, "wires": wires, "widgets": widgets})
        return Box(len(self.nodes))

    def note(self, text: str, width: int, height: int, title: str = "Note") -> Box:
        return self.node("MarkdownNote", {"text": text}, title=title, size=(width, height))

    def column(self, *groups: dict[str, Any]) -> None:
        """Groups one beneath another, right of those before."""
        self.groups.append(list(groups))

    def draw(self, editor: Editor) -> dict[str, Any]:
        """Draws it in a new workflow; returns that as the editor writes it.

        Without what belongs to one tab of one browser: the workflow's id, which the editor gives anew to a template
        that has none, and the view.
        """
        editor.do(script("draw.js"), self.nodes, self.groups, FOLDED)
        editor.fit()
        workflow = editor.workflow()
        workflow.pop("id")
        workflow["extra"].pop("ds", None)
        for node in workflow["nodes"]:
            if node["flags"].get("collapsed"):
                node["size"] = [FOLDED[0], 1]  # unfolded, the editor gives it the room that it needs
        return workflow


def group(title: str, *columns: list[Box]) -> dict[str, Any]:
    """A group with a title; its nodes by columns."""
    return {"title": title, "columns": [[box.number for box in column] for column in columns]}


def script(name: str) -> str:
    """A script of this folder, for `Editor.do`."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

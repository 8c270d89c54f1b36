"""The tables of the translated help pages, made from the translated texts: `python -m tests.help_pages` rewrites them.

The English pages are written by hand; a translated one has a short text by hand, and between its marks these tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .node_texts import LOCALES, ROOT, Node, Slot, nodes

DOCS = ROOT / "web" / "docs"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEADS = {"zh": ("输入", "输出", "| 名称 | 标识 | 默认值 | 说明 |", "| 名称 | 说明 |")}


def page_of(node_id: str, language: str) -> Path:
    """Where the host looks for it."""
    return DOCS / node_id / f"{language}.md"


def tables(node: Node, language: str) -> str:
    """What each input and output is, as its tooltip says."""
    texts = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))[node.node_id]
    of_inputs, of_outputs, head, short_head = HEADS[language]
    inputs = [_input_row(slot, texts["inputs"][slot.id]) for slot in node.inputs]
    outputs = [f"| {_cell(text['name'])} | {_cell(text['tooltip'])} |" for text in texts["outputs"].values()]
    return "\n".join(
        [f"## {of_inputs}", "", head, "|---|---|---|---|", *inputs, "", f"## {of_outputs}", "", short_head, "|---|---|"]
        + outputs
    )


def made(text: str) -> str:
    """What stands between a page's marks."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def rewrite() -> None:
    for node in nodes().values():
        for language in HEADS:
            path = page_of(node.node_id, language)
            before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
            after = rest.partition(END)[2]
            path.write_text(f"{before}{BEGIN}\n{tables(node, language)}\n{END}{after}", encoding="utf-8")


def _input_row(slot: Slot, text: dict[str, str]) -> str:
    says = re.sub(rf"^{re.escape(slot.id)}(：|: )", "", text["tooltip"])
    return f"| {_cell(text['name'])} | `{slot.id}` | {_default(slot)} | {_cell(says)} |"


def _default(slot: Slot) -> str:
    value = slot.more.get("default")
    if value in (None, ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.12f}".rstrip("0").rstrip(".")
    return _cell("; ".join(str(value).splitlines()))


def _cell(text: str) -> str:
    """Words in angle brackets would be taken for tags, and vanish."""
    return re.sub(r"(<[^>]+>|\{\w+\})", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    rewrite()

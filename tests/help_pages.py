"""The tables of the help pages: `python -m tests.help_pages` rewrites them.

The English pages are written by hand, but for the rows of settings in the tables of the options nodes: these are made
from what the settings say of themselves. So is the table of presets, here and in docs/recipes.md. A translated page has
a short text by hand, and between its marks tables made from the translated texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from apt_train.config import TrainConfig
from apt_train.presets import PRESETS, shown
from apt_train.settings_field import Said, fields_of, groups_of, said, types_of, words_in

from .node_texts import LOCALES, ROOT, Node, Slot, nodes

DOCS = ROOT / "web" / "docs"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEADS = {"zh": ("输入", "输出", "| 名称 | 标识 | 默认值 | 说明 |", "| 名称 | 说明 |")}

OPTIONS = ("APTMethodOptions", "APTAdapterOptions", "APTDataOptions", "APTSampleOptions", "APTTrainOptions")
PRESETS_HEAD = "| preset | sets | why |"
WITH_PRESETS = (DOCS / "APTTrain.md", ROOT / "docs" / "recipes.md")
CODE = re.compile(r"<[^>]+>|\{\w+\}|(?<!`)\b[a-z]+(?:_[a-z]+)+\b(?!`)")  # a place to fill in, or a setting's name


# ---- English: a row per setting ----------------------------------------------------------------------------------


def with_settings(text: str, slots: list[Slot], root: type = TrainConfig) -> str:
    """A page with the row of every widget that is a setting; one that has none yet gets it at its section's end."""
    about = everything_said(root)
    rows = {slot.id: setting_row(slot, *about[slot.id]) for slot in slots if slot.id in about}
    lines = [rows.get(_first_code(line), line) for line in text.splitlines()]
    for slot in slots:
        if slot.id in rows and rows[slot.id] not in lines:
            lines.insert(_end_of_section(lines, slot.name.partition(" · ")[0]), rows[slot.id])
    return "\n".join(lines) + "\n"


def everything_said(root: type) -> dict[str, tuple[Said, tuple[str, ...]]]:
    """What each setting says of itself, and the words that may stand in a number's place, by its name."""
    homes = [root, *(types_of(root)[name] for name in groups_of(root))]
    fields = [(home, item) for home in homes for item in fields_of(home).values()]
    return {item.name: (said(item), words_in(types_of(home)[item.name])) for home, item in fields}


def setting_row(slot: Slot, about: Said, words: tuple[str, ...]) -> str:
    default = _default(slot).replace("`", "") or "empty"
    text = CODE.sub(r"`\g<0>`", f"{slot.tooltip} {about.more}".strip())
    return f"| `{slot.id}` | {default} | {_values(slot, about, words)} | {text} | {about.standing} |"


def _values(slot: Slot, about: Said, words: tuple[str, ...]) -> str:
    """What may be given, with its unit."""
    if choices := slot.more.get("options"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "min" in slot.more:
        least, most = _number(slot.more["min"]), _number(slot.more["max"])
        return f"{least} to {most} {about.unit}".strip()
    if about.range is not None:
        return f"{about.range}, or " + ", ".join(f"`{word}`" for word in words)
    return "on, off" if slot.kind == "Boolean" else "a line for each" if slot.more.get("multiline") else "text"


def _first_code(line: str) -> str:
    """The name that a row of a table explains; empty: it is no such row."""
    found = re.match(r"\| `(\w+)` \|", line)
    return found[1] if found else ""


def _end_of_section(lines: list[str], heading: str) -> int:
    """Below the last row of a setting under that heading."""
    begin = lines.index(f"### {heading}")
    after = [number for number, line in enumerate(lines) if number > begin and line.startswith("#")]
    return max(number for number in range(begin, min(after)) if _first_code(lines[number])) + 1


# ---- other languages: all tables ---------------------------------------------------------------------------------


def page_of(node_id: str, language: str) -> Path:
    """Where the host looks for it."""
    return DOCS / node_id / f"{language}.md"


def tables(node: Node, language: str) -> str:
    """What each input and output is, as its tooltip says."""
    file = LOCALES / language / "nodeDefs.json"
    texts = json.loads(file.read_text(encoding="utf-8"))[node.node_id]
    if missing := [slot.id for slot in node.inputs if slot.id not in texts["inputs"]]:
        raise SystemExit(
            f"{file.relative_to(ROOT)} has no {', '.join(missing)} for {node.node_id}: translate it first."
        )
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


def with_presets(text: str) -> str:
    """A page with its table of presets made anew: it is known by its head."""
    rows = [f"| {preset.name} | {sets_of(preset.values)} | {preset.why} |" for preset in PRESETS.values()]
    table = "\n".join([PRESETS_HEAD, "|---|---|---|", *rows])
    before, _, rest = text.partition(PRESETS_HEAD)
    _, _, after = rest.partition("\n\n")
    return f"{before}{table}\n\n{after}"


def sets_of(values: Mapping[str, object]) -> str:
    parts = [f"`{name}` " + CODE.sub(r"`\g<0>`", shown(value)) for name, value in values.items()]
    return ", ".join(parts) or "nothing"


def rewrite() -> None:
    for node_id in OPTIONS:
        path = DOCS / f"{node_id}.md"
        path.write_text(with_settings(path.read_text(encoding="utf-8"), nodes()[node_id].inputs), encoding="utf-8")
    for path in WITH_PRESETS:
        path.write_text(with_presets(path.read_text(encoding="utf-8")), encoding="utf-8")
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
        return _number(value)
    return _cell(" / ".join(str(value).splitlines()))


def _number(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _cell(text: str) -> str:
    """Words in angle brackets would be taken for tags, and vanish."""
    return re.sub(r"(<[^>]+>|\{\w+\})", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    rewrite()

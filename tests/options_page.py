"""The tables of docs/options.md, made from the settings themselves: `python -m tests.options_page` rewrites them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from apt_train.cli import build_parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def options_text(parser: argparse.ArgumentParser | None = None) -> str:
    """A table per group of `apt-train run --help`, in its order."""
    groups = [(group.title or "", group._group_actions) for group in (parser or _run_parser())._action_groups]
    argparse_own = ("positional arguments", "options")
    return "\n\n".join(_table(title, actions) for title, actions in groups if title not in argparse_own)


def page_text() -> str:
    """What stands between the page's marks."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def rewrite() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{options_text()}\n{END}{after}", encoding="utf-8")


def _run_parser() -> argparse.ArgumentParser:
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices["run"]


def _table(title: str, actions: list[argparse.Action]) -> str:
    head = f"**{title[0].upper()}{title[1:]}**\n\n| option | default | |\n|---|---|---|\n"
    return head + "\n".join(_row(action) for action in actions)


def _row(action: argparse.Action) -> str:
    text, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
    default = "**required**" if action.required else _escaped(default.removesuffix(")"))
    return f"| <code>{_escaped(_spelled(action))}</code> | {default} | {_escaped(text)} |"


def _spelled(action: argparse.Action) -> str:
    """`--name`, with its choices where it has them; `--[no-]name` for a switch."""
    name = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return "--[no-]" + name.removeprefix("--")
    if action.nargs == "+":
        return f"{name} ..."
    choices = action.metavar if isinstance(action.metavar, str) and "|" in action.metavar else ""
    return f"{name} {choices}".strip()


def _escaped(text: str) -> str:
    """Stars, angles and underscores are text here, not markup; a bar would end the cell. The same to every reader of
    Markdown, hence no backslashes."""
    return re.sub(r"[|*_<>]", lambda letter: f"&#{ord(letter[0])};", text)


if __name__ == "__main__":
    rewrite()

"""The README's tables of options, made from the settings themselves: `python -m tests.readme_options` rewrites them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from apt_train.cli import build_parser

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def options_text(parser: argparse.ArgumentParser | None = None) -> str:
    """A table per group of `apt-train run --help`, in its order."""
    groups = [(group.title or "", group._group_actions) for group in (parser or _run_parser())._action_groups]
    argparse_own = ("positional arguments", "options")
    return "\n\n".join(_table(title, actions) for title, actions in groups if title not in argparse_own)


def readme_text() -> str:
    """What stands between the README's marks."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def rewrite() -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{options_text()}\n{END}{after}", encoding="utf-8")


def _run_parser() -> argparse.ArgumentParser:
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices["run"]


def _table(title: str, actions: list[argparse.Action]) -> str:
    head = f"**{title[0].upper()}{title[1:]}**\n\n| option | default | |\n|---|---|---|\n"
    return head + "\n".join(_row(action) for action in actions)


def _row(action: argparse.Action) -> str:
    text, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
    default = "**required**" if action.required else _escaped(default.removesuffix(")"))
    return f"| `{_spelled(action)}` | {default} | {_escaped(text)} |"


def _spelled(action: argparse.Action) -> str:
    """`--name`, with its choices where it has them; `--[no-]name` for a switch."""
    name = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return "--[no-]" + name.removeprefix("--")
    if action.nargs == "+":
        return f"{name} ..."
    choices = action.metavar if isinstance(action.metavar, str) and "|" in action.metavar else ""
    return f"{name} {choices}".strip().replace("|", "\\|")


def _escaped(text: str) -> str:
    """Stars, angles and underscores are text here, not markup; a bar would end the cell."""
    return re.sub(r"([|*_<>])", r"\\\1", text)


if __name__ == "__main__":
    rewrite()

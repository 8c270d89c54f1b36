"""The user's language, for what the host shows as it comes from here: errors, and the line of text on a node.

In: which language the editor is set to, and a sentence's translation from `locales/LANGUAGE/main.json`. Not in: what
the editor translates itself (names, tooltips), nor the texts of its scripts (`web/texts.js`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

_LOCALES = Path(__file__).resolve().parents[2] / "locales"
_SEPARATOR = " · "
_LANGUAGE = re.compile(r"[a-z]{2}(-[A-Z]{2})?")


@dataclass
class _Page:
    """What the page that was opened last said of itself; lives with the host's process."""

    language: str = ""


_PAGE = _Page()


def note_page_language(said: bytes) -> None:
    """An open page's language: the browser's own, where the user has chosen none. Anything else is not noted."""
    language = said[:10].decode("ascii", errors="replace")
    if _LANGUAGE.fullmatch(language):
        _PAGE.language = language


def translated(sentence: str) -> str:
    """In the user's language, where it is one of those translated; else as it is."""
    return translate(sentence, _table(_language()))


def translated_line(line: str) -> str:
    """A line of several parts, each by itself."""
    table = _table(_language())
    return _SEPARATOR.join(translate(part, table) for part in line.split(_SEPARATOR)) if table else line


def translate(sentence: str, table: dict[str, str]) -> str:
    """By the first pattern of the table that fits; `{1}`, `{2}` ... stand for what differs from case to case."""
    for pattern, translation in table.items():
        found = re.fullmatch(re.sub(r"\\\{\d\\\}", "(.+?)", re.escape(pattern)), sentence, re.DOTALL)
        if found:
            return _filled(translation, found.groups())
    return sentence


def _filled(translation: str, parts: Sequence[str]) -> str:
    return re.sub(r"\{(\d)\}", lambda place: parts[int(place.group(1)) - 1], translation)


def _language() -> str:
    """Of the editor's settings; the page's where they cannot be read, or leave it to the browser."""
    settings = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        chosen = json.loads(settings.read_text(encoding="utf-8")).get("Comfy.Locale")
    except (OSError, ValueError, AttributeError, RecursionError):
        chosen = None
    return chosen if isinstance(chosen, str) and chosen else _PAGE.language


def _table(language: str) -> dict[str, str]:
    if not _LANGUAGE.fullmatch(language):
        return {}
    try:
        texts: dict[str, Any] = json.loads((_LOCALES / language / "main.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    return texts["aptTrain"]["server"]

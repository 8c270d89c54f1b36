"""The user's language, for texts that the host shows as they come from here: errors, and the line on a node.

In: the editor's language, and translating a sentence with `locales/LANGUAGE/main.json`. Not in: what the editor
translates itself (names, tooltips), nor the texts of its scripts (`web/texts.js`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import folder_paths

_LOCALES = Path(__file__).resolve().parents[2] / "locales"
_SEPARATOR = " · "
LONGEST = 5000  # characters; none of our sentences is longer
Pattern = tuple[list[str], str]  # the fixed pieces of an English sentence, and its translation
_PLACE = re.compile(r"\{\d\}")
_LANGUAGE = re.compile(r"[a-z]{2}(-[A-Z]{2})?")
_LONGEST_ID = 100  # characters; the host's own have 32
_MOST_PAGES = 1000  # anyone may report one

# These live as long as the host process.
_PAGES: dict[str, str] = {}  # the language of each page by its client id, the most recently opened last
_SHARED: list[Any] = []  # the host's server, if it has several users
_ASKING: ContextVar[str] = ContextVar("_ASKING", default="")  # the client whose prompt is checked, not executed yet


def note_page_language(said: bytes, client: str = "") -> None:
    """Record an open page's language: the browser's, if the user has chosen none. Anything else is ignored."""
    language = said[:10].decode("ascii", errors="replace")
    if _LANGUAGE.fullmatch(language):
        _PAGES.pop(client[:_LONGEST_ID], None)
        _PAGES[client[:_LONGEST_ID]] = language
        if len(_PAGES) > _MOST_PAGES:
            del _PAGES[next(iter(_PAGES))]


def tell_users_apart(server: Any) -> None:
    """On a host with several users, each page is spoken to in its own language, not the default user's."""
    from comfy.cli_args import args

    def note_asking(posted: dict[str, Any]) -> dict[str, Any]:
        _ASKING.set(str(posted.get("client_id")))
        return posted

    if args.multi_user:
        _SHARED.append(server)
        server.add_on_prompt_handler(note_asking)


def translated(sentence: str) -> str:
    """The sentence in the user's language if there is a translation, otherwise unchanged."""
    return _translate(sentence, _patterns(_language()))


def translated_line(line: str) -> str:
    """A line of several parts, each translated separately."""
    patterns = _patterns(_language())
    return _SEPARATOR.join(_translate(part, patterns) for part in line.split(_SEPARATOR)) if patterns else line


def _translate(sentence: str, patterns: list[Pattern]) -> str:
    """Translate by the first matching pattern; `{1}`, `{2}` ... are its variable parts."""
    if len(sentence) > LONGEST:
        return sentence
    lead, colon, rest = sentence.partition(": ")
    for pieces, translation in patterns:
        if rest and pieces == [lead + colon, ""]:  # a sentence of its own follows, as after "Prior images: "
            return _filled(translation, [_translate(rest, patterns)])
    for pieces, translation in patterns:
        gaps = _gaps(sentence, pieces)
        if gaps is not None:
            return _filled(translation, gaps)
    return sentence


def _gaps(sentence: str, pieces: Sequence[str]) -> list[str] | None:
    """The text in the gaps between the pieces, none of it empty; None: the sentence does not consist of them.

    Each piece is matched at its first occurrence. A regular expression would backtrack, on a long text for minutes.
    """
    first, last, middle = pieces[0], pieces[-1], pieces[1:-1]
    if len(pieces) == 1:
        return [] if sentence == first else None
    if not (sentence.startswith(first) and sentence.endswith(last)):
        return None
    at, gaps = len(first), []
    for piece in middle:
        found = sentence.find(piece, at + 1)
        if found < 0:
            return None
        gaps.append(sentence[at:found])
        at = found + len(piece)
    end = len(sentence) - len(last)
    return [*gaps, sentence[at:end]] if end > at else None


def _filled(translation: str, parts: Sequence[str]) -> str:
    return re.sub(r"\{(\d)\}", lambda place: parts[int(place.group(1)) - 1], translation)


def _language() -> str:
    """The language in the editor's settings, or the page's if they are unreadable or leave it to the browser.

    With several users it is that of the page whose prompt is checked or executed; English, if it is unknown.
    """
    if _SHARED:
        return _PAGES.get(_ASKING.get() or _SHARED[0].client_id, "")
    settings = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        chosen = json.loads(settings.read_text(encoding="utf-8")).get("Comfy.Locale")
    except (OSError, ValueError, AttributeError, RecursionError):
        chosen = None
    return chosen if isinstance(chosen, str) and chosen else next(reversed(_PAGES.values()), "")


@functools.cache
def _patterns(language: str) -> list[Pattern]:
    """A language's sentences with their translations; empty if there is no such language."""
    if not _LANGUAGE.fullmatch(language):
        return []
    try:
        texts: dict[str, Any] = json.loads((_LOCALES / language / "main.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    served = texts["aptTrain"]["server"].items()
    # Patterns with the most fixed text come first: `{1} is {2}: choose one of {3}.` would also match others' sentences.
    by_words = sorted(served, key=lambda pair: -len(_PLACE.sub("", pair[0])))
    return [(_PLACE.split(english), translation) for english, translation in by_words]

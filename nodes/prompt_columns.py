"""The attention column of each position of a prompt, both as the prior and as the tuned model reads it.

In: matching the two readings of one prompt by the words around the subject. Not in: the tokenizer
(`host.prompt_reading`) and attention (`host.attention`). All rules here are ours; the columns are those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..apt_train.errors import InputError
from ..apt_train.settings_field import require_text
from ..apt_train.text.captions import SUBJECT
from ..apt_train.text.tokens import END_LABEL, REST_LABEL, START_LABEL, SUBJECT_LABEL

Keys = tuple[Hashable, ...]


@dataclass(frozen=True)
class Piece:
    """What one column stands for: a token of the vocabulary, or an embedding with all its rows.

    `keys`: identify the same piece elsewhere, one per position (a token's id, an embedding row's content).
    `positions`: in the sequence of all chunks.
    """

    label: str
    keys: Keys
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """A text as a tokenizer reads it; `length`: positions of all its chunks, including starts, ends and padding."""

    pieces: tuple[Piece, ...]
    length: int

    @property
    def keys(self) -> list[Keys]:
        return [piece.keys for piece in self.pieces]


Read = Callable[[str], Reading]


@dataclass(frozen=True)
class Texts:
    """A prompt and the words that replace its `{subject}`, which may be the same for both models."""

    prompt: str
    prior_subject: str
    tuned_subject: str

    @staticmethod
    def of(prompt: str, trigger: str, class_word: str) -> Texts:
        """The tuned model reads the trigger, the prior the class word; if one is empty, both read the other.

        InputError: no prompt or a book, or a `{subject}` with nothing to replace it.
        """
        prompt, trigger, class_word = prompt.strip(), trigger.strip(), class_word.strip()
        if not prompt:
            raise InputError("The prompt is empty: write what both models should read.")
        require_text("prompt", prompt)
        if SUBJECT in prompt and not trigger and not class_word:
            raise InputError(
                f"The prompt holds {SUBJECT}, but nothing says what stands for it: wire run, fill in trigger and "
                "class_word, or write the words themselves."
            )
        return Texts(prompt, class_word or trigger, trigger or class_word)

    @property
    def prior(self) -> str:
        return self.prompt.replace(SUBJECT, self.prior_subject)

    @property
    def tuned(self) -> str:
        return self.prompt.replace(SUBJECT, self.tuned_subject)

    @property
    def sentences(self) -> list[str]:
        """What each model reads, for labels."""
        prior, tuned = (" ".join(text.split()) for text in (self.prior, self.tuned))
        return [f"both read: {prior}"] if prior == tuned else [f"prior reads: {prior}", f"tuned reads: {tuned}"]


@dataclass(frozen=True)
class Columns:
    """The column of every position of both texts.

    Columns: start; each piece of the text, each `{subject}` as one; end; rest (padding, start and end of further
    chunks). `labels`, `keys`: one per column; columns that are not a piece of the text have no keys.
    """

    prior: list[int]
    tuned: list[int]
    labels: list[str]
    keys: list[Keys]


def match(texts: Texts, read: Read) -> Columns:
    """The columns of both versions of a prompt. InputError: a subject that is read as nothing, or as part of a word."""
    slots = _slots(texts.prompt, read)
    return Columns(
        _place(slots, texts.prior, texts.prior_subject, read),
        _place(slots, texts.tuned, texts.tuned_subject, read),
        [START_LABEL, *(slot.label if slot else SUBJECT_LABEL for slot in slots), END_LABEL, REST_LABEL],
        [(), *(slot.keys if slot else () for slot in slots), (), ()],
    )


def choose(columns: Columns, wanted: str, texts: Texts, read: Read) -> list[int]:
    """The columns of words separated by commas, in the prompt's order; all columns if there are no words.

    A word of several tokens counts as a whole; several words are matched in this order. `{subject}`, the trigger and
    the class word mean the subject; `<start>`, `<end>` and `<rest>` their columns. InputError: a word is not in the
    prompt.
    """
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    if not words:
        return list(range(len(columns.labels)))
    return sorted({column for word in words for column in _columns_of(word, columns, texts, read)})


def _slots(prompt: str, read: Read) -> list[Piece | None]:
    """The prompt's pieces, None for each `{subject}`, which is located with a marker word that the prompt lacks."""
    mark = "subject"
    while mark in prompt.replace(SUBJECT, "").lower():
        mark += "x"
    pieces, own = read(prompt.replace(SUBJECT, mark)).pieces, read(mark).keys
    slots: list[Piece | None] = []
    i = 0
    while i < len(pieces):
        is_mark = SUBJECT in prompt and [piece.keys for piece in pieces[i : i + len(own)]] == own
        slots.append(None if is_mark else pieces[i])
        i += len(own) if is_mark else 1
    if slots.count(None) != prompt.count(SUBJECT):
        raise InputError(f"The prompt has {SUBJECT} inside a longer word: put a space before and after it.")
    return slots


def _place(slots: Sequence[Piece | None], text: str, subject: str, read: Read) -> list[int]:
    reading = read(text)
    own = read(subject).keys if None in slots else []
    if None in slots and not own:
        raise InputError(f"{subject!r}, in the place of {SUBJECT}, is read as nothing: write words that have letters.")
    expected = [(column, keys) for column, slot in enumerate(slots, 1) for keys in ([slot.keys] if slot else own)]
    if [keys for _, keys in expected] != reading.keys:
        raise InputError(
            f"{subject!r} is read differently inside the prompt than alone: put a space before and after {SUBJECT}."
        )
    rest = len(slots) + 2
    columns = [0] + [rest] * (reading.length - 1)
    for (column, _), piece in zip(expected, reading.pieces, strict=True):
        for position in piece.positions:
            columns[position] = column
    columns[columns.index(rest)] = rest - 1  # the first chunk's end follows its last token
    return columns


def _columns_of(word: str, columns: Columns, texts: Texts, read: Read) -> list[int]:
    special = {START_LABEL, END_LABEL, REST_LABEL, SUBJECT_LABEL}
    subject = {SUBJECT, texts.prior_subject.lower(), texts.tuned_subject.lower()}
    label = SUBJECT_LABEL if word.lower() in subject else word.lower()
    found = [i for i, name in enumerate(columns.labels) if name == label and name in special]
    wanted = read(word).keys if word not in special | {SUBJECT} else []
    for i in range(len(columns.keys) - len(wanted) + 1 if wanted else 0):
        if columns.keys[i : i + len(wanted)] == wanted:
            found += range(i, i + len(wanted))
    if not found:
        raise InputError(
            f"tokens names {word!r}, which the prompt does not hold: choose among {', '.join(columns.labels)}."
        )
    return found

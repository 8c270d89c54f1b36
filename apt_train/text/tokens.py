"""Captions as token ids, cut into chunks, and the attention column of each position.

In: reading a caption with an unmodified tokenizer, cutting long captions as ComfyUI does, and the columns that match a
caption's tuned and prior versions. Not in: anything with gradients (`conditioning.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..families.components import TextEncoder
from .captions import SUBJECT

START_LABEL, SUBJECT_LABEL, END_LABEL, REST_LABEL = "<start>", "<subject>", "<end>", "<rest>"
LARGE_GROUP = 8  # as in ComfyUI: groups of this many tokens or more may be split between chunks


@dataclass(frozen=True)
class Token:
    """One position of a caption."""

    id: int
    column: int
    row: int = -1  # the learned identifier's row at this position; -1: the vocabulary's own embedding


@dataclass(frozen=True)
class Chunk:
    """One encoder input of the tokenizer's length: start, tokens, end, padding."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]  # the identifier's row at each position, -1 where there is none
    columns: tuple[int, ...]
    end: int  # position of the end token


@dataclass(frozen=True)
class Reading:
    """A caption's tokens in groups that should not be split, with one label per column."""

    groups: list[list[Token]]
    labels: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """What is needed from a text encoder's tokenizer, which is never modified.

    `start`: None if texts have no start token. `length`: positions in one chunk (77 for CLIP). `sequence`: see
    `TextEncoder`.
    """

    tokenizer: Any
    start: int | None
    end: int
    pad: int
    length: int
    sequence: int | None = 0

    @staticmethod
    def of(encoder: TextEncoder) -> Vocabulary:
        """Read a tokenizer's special ids. InputError: it has no start or end token."""
        tokenizer = encoder.tokenizer
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        if (start is None and encoder.starts) or end is None:
            raise InputError("The tokenizer has no start or end token: use the one made for this model.")
        # A tokenizer without a configured length reports a number near 1e30.
        config: Any = encoder.model.config
        length = encoder.length or int(min(tokenizer.model_max_length, config.max_position_embeddings))
        first = start if encoder.starts else None
        return Vocabulary(tokenizer, first, end, end if pad is None else pad, length, encoder.sequence)

    @property
    def room(self) -> int:
        """Tokens that fit into one chunk."""
        return self.length - 1 - len(self._lead)

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self.start is None else (self.start,)

    def tokens(self, text: str) -> list[tuple[str, int]]:
        """(label, id) of each token, read word by word; a single-token word is its own label."""
        found: list[tuple[str, int]] = []
        for word in text.split():
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            pieces = [word] if len(ids) == 1 else self.tokenizer.convert_ids_to_tokens(ids)
            found += [(piece.replace("</w>", ""), int(id)) for piece, id in zip(pieces, ids, strict=True)]
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of one or more words, without start and end."""
        return [id for _, id in self.tokens(text)]

    def unknown_words(self, text: str) -> list[str]:
        """Words the tokenizer cannot spell; none for CLIP's, which falls back on single bytes."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is None or unknown == self.end:
            return []
        return [word for word in text.split() if unknown in self.ids(word)]

    def seal(self, tokens: list[Token], start: int, end: int, rest: int) -> Chunk:
        """Start, tokens, end and padding as a chunk; `start`, `end`, `rest`: the columns of those parts."""
        padding, lead = self.room - len(tokens), self._lead
        assert padding >= 0, (len(tokens), self.length)
        return Chunk(
            ids=(*lead, *(token.id for token in tokens), self.end, *(self.pad,) * padding),
            rows=(*(-1 for _ in lead), *(token.row for token in tokens), -1, *(-1,) * padding),
            columns=(*(start for _ in lead), *(token.column for token in tokens), end, *(rest,) * padding),
            end=len(lead) + len(tokens),
        )

    def filler(self, rest: int = -1) -> Chunk:
        """An empty chunk that lengthens a shorter caption; all of it in the column `rest`, or the caller sets it."""
        return self.seal([], rest, rest, rest)


def read(vocabulary: Vocabulary, caption: str, subject: list[int], learned: bool) -> Reading:
    """Tokens of a caption, with the `subject` ids in place of every `{subject}`.

    Columns (ours): start; one for each token of the text; one for each whole subject; end; rest. They depend on the
    text only, not on the subject's ids, so both versions of a caption share them. Groups follow ComfyUI: a learned
    identifier is a group, and so is the text between two of them.
    """
    groups: list[list[Token]] = [[]]
    labels = [START_LABEL]
    for i, text in enumerate(caption.split(SUBJECT)):
        if i:
            span = [Token(id, len(labels), row if learned else -1) for row, id in enumerate(subject)]
            groups = [*groups, span, []] if learned else [*groups[:-1], groups[-1] + span]
            labels.append(SUBJECT_LABEL)
        for label, id in vocabulary.tokens(text):
            groups[-1].append(Token(id, len(labels)))
            labels.append(label)
    return Reading(groups, [*labels, END_LABEL, REST_LABEL])


def pack(groups: list[list[Token]], room: int) -> list[list[Token]]:
    """Pack groups into chunks of at most `room` tokens as ComfyUI does; at least one chunk, possibly empty.

    A group of fewer than 8 tokens that does not fit moves to the next chunk unsplit; a longer one first fills the
    current chunk.
    """
    chunks: list[list[Token]] = [[]]
    for group in groups:
        may_cut = len(group) >= LARGE_GROUP or len(group) > room
        while len(group) + len(chunks[-1]) > room:
            free = room - len(chunks[-1]) if may_cut else 0
            chunks[-1] += group[:free]
            group = group[free:]
            chunks.append([])
        chunks[-1] += group
    return chunks


def chunks_of(reading: Reading, vocabulary: Vocabulary, begin: int) -> list[Chunk]:
    """A reading's chunks. The first one's start and end have their own columns, those of the others are rest.

    `begin`: the column of its start.
    """
    end, rest = len(reading.labels) - 2, len(reading.labels) - 1
    packed = pack(reading.groups, vocabulary.room)
    first = vocabulary.seal(packed[0], 0, end, rest)
    chunks = [first, *(vocabulary.seal(tokens, rest, rest, rest) for tokens in packed[1:])]
    return [replace(chunk, columns=tuple(column + begin for column in chunk.columns)) for chunk in chunks]


@dataclass(frozen=True)
class TokenLayout:
    """One caption's tuned and prior versions, each a list of chunks, with one `Chunk` per text encoder.

    `labels`: one per column, the same for both versions: `<start>`, the text's tokens and `<subject>`, `<end>`,
    `<rest>`; for each sequence of the encoders its own. `rests`: the place of each sequence's first encoder, and the
    column of its rest.
    """

    tuned: list[tuple[Chunk, ...]]
    prior: list[tuple[Chunk, ...]]
    labels: list[str]
    rests: dict[int, int]

    @property
    def num_chunks(self) -> int:
        """The number of chunks that both versions are padded to."""
        return max(len(self.tuned), len(self.prior))

    def columns(self, *, tuned: bool, num_chunks: int) -> list[int]:
        """The column of every sequence position, padded with empty chunks (all rest) to `num_chunks`."""
        chunks = self.tuned if tuned else self.prior
        found = [column for chunk in chunks for place in self.rests for column in chunk[place].columns]
        empty = [rest for place, rest in self.rests.items() for _ in chunks[0][place].ids]
        return found + empty * (num_chunks - len(chunks))


def lay_out(
    caption: str, vocabularies: list[Vocabulary], tuned: list[list[int]], prior: list[list[int]], learned: bool
) -> TokenLayout:
    """Read a caption with every encoder's tokenizer.

    `tuned`, `prior`: per encoder, the subject's ids; `learned`: the tuned ones stand for the identifier's rows.
    InputError: two tokenizers place tokens differently, although their outputs are joined position by position.
    """
    sequences = [vocabulary.sequence for vocabulary in vocabularies]
    firsts = [i if sequence is None else sequences.index(sequence) for i, sequence in enumerate(sequences)]
    versions: list[list[tuple[Chunk, ...]]] = []
    labels: list[str] = []
    rests: dict[int, int] = {}
    for subjects, with_rows in ((tuned, learned), (prior, False)):
        readings = [read(v, caption, ids, with_rows) for v, ids in zip(vocabularies, subjects, strict=True)]
        labels, begins = _in_a_row(readings, firsts, sequences)
        rests = {place: begin + len(readings[place].labels) - 1 for place, begin in begins.items()}
        chunked = [
            chunks_of(reading, v, begins.get(first, 0))
            for reading, v, first in zip(readings, vocabularies, firsts, strict=True)
        ]
        if any(_places(chunks) != _places(chunked[first]) for chunks, first in zip(chunked, firsts, strict=True)):
            raise InputError(
                f"The text encoders' tokenizers split {caption!r} differently: use those made for this model."
            )
        most = max(map(len, chunked))
        empty = [v.filler(rests.get(first, -1)) for v, first in zip(vocabularies, firsts, strict=True)]
        filled = [chunks + [filler] * (most - len(chunks)) for chunks, filler in zip(chunked, empty, strict=True)]
        versions.append(list(zip(*filled, strict=True)))
    return TokenLayout(versions[0], versions[1], labels, rests)


def _in_a_row(
    readings: list[Reading], firsts: list[int], sequences: list[int | None]
) -> tuple[list[str], dict[int, int]]:
    """The labels of all sequences, and the column at which each begins, by the place of its first encoder."""
    labels: list[str] = []
    begins: dict[int, int] = {}
    for place in dict.fromkeys(firsts):
        if sequences[place] is not None:
            begins[place] = len(labels)
            labels += readings[place].labels
    return labels, begins


def _places(chunks: list[Chunk]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(chunk.columns, chunk.rows) for chunk in chunks]

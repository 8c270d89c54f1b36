"""Captions as token ids, cut into chunks, and the attention column of each position.

In: reading a caption with an unmodified tokenizer, cutting long captions as ComfyUI does, and the columns that match a
caption's tuned and prior versions. Not in: anything with gradients (`conditioning.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import InputError
from ..families.components import TextEncoder
from .captions import SUBJECT

START_LABEL, SUBJECT_LABEL, END_LABEL, REST_LABEL = "<start>", "<subject>", "<end>", "<rest>"
_MARKS = re.compile("</w>|^[\u0120\u2581]")  # a word's end as CLIP's tokenizer spells it, or the space before it
_WORD = "a"  # stands for the word before
LARGE_GROUP = 8  # as in ComfyUI: groups of this many tokens or more may be split between chunks


@dataclass(frozen=True)
class Token:
    """One position of a caption."""

    id: int
    column: int
    row: int = -1  # the learned identifier's row at this position; -1: the vocabulary's own embedding


@dataclass(frozen=True)
class Chunk:
    """One encoder input: start or template, tokens, end or template, padding up to the tokenizer's length if any."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]  # the identifier's row at each position, -1 where there is none
    columns: tuple[int, ...]  # of the last positions, whose hidden states are kept
    end: int  # position of the end token


@dataclass(frozen=True)
class Reading:
    """A caption's tokens in groups that should not be split, with one label per column."""

    groups: list[list[Token]]
    labels: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """What is needed from a text encoder's tokenizer, which is never modified.

    `lead`, `tail`: what stands before and after the tokens of a chunk. `length`: positions in one chunk (77 for CLIP).
    """

    encoder: TextEncoder
    lead: tuple[int, ...]
    tail: tuple[int, ...]
    pad: int
    length: int

    @staticmethod
    def of(encoder: TextEncoder) -> Vocabulary:
        """Read a tokenizer's special ids. InputError: it has no start or end token."""
        tokenizer, model = encoder.tokenizer, cast("Any", encoder.model)
        lead, tail = _ends(encoder)
        # A tokenizer without a configured length reports a number near 1e30.
        length = encoder.length or int(min(tokenizer.model_max_length, model.config.max_position_embeddings))
        assert encoder.cut <= len(lead) < length - len(tail), (encoder.cut, lead, tail, length)
        pad = next((id for id in (tokenizer.pad_token_id, *tail) if id is not None), 0)
        return Vocabulary(encoder, lead, tail, pad, length)

    @property
    def opening(self) -> str:
        """The space before the first word, if the template ends with one."""
        return " " if self.encoder.template is not None and self.encoder.template[0].endswith(" ") else ""

    @property
    def room(self) -> int:
        """Tokens that fit into one chunk."""
        return self.length - len(self.lead) - len(self.tail)

    def tokens(self, text: str, before: str = "") -> list[tuple[str, int]]:
        """(label, id) of each token, read word by word; a single-token word is its own label.

        `before`: what stands right before the text, without being read.
        """
        found: list[tuple[str, int]] = []
        for space, word in re.findall(r"(\s*)(\S+)", text):
            place = (_WORD, f" {word}") if space else (before, word)
            ids = _ids_behind(*place, self.encoder.tokenizer)
            pieces = [word] if len(ids) == 1 else self.encoder.tokenizer.convert_ids_to_tokens(ids)
            found += [(_MARKS.sub("", piece) or piece, id) for piece, id in zip(pieces, ids, strict=True)]
        return found

    def ids(self, text: str, before: str = "") -> list[int]:
        """The ids of one or more words, without start and end."""
        return [id for _, id in self.tokens(text, before)]

    def unknown_words(self, text: str) -> list[str]:
        """Words the tokenizer cannot spell; none for CLIP's, which falls back on single bytes."""
        unknown = getattr(self.encoder.tokenizer, "unk_token_id", None)
        if unknown is None or unknown in self.tail:
            return []
        return [word for word in text.split() if unknown in self.ids(word)]

    def seal(self, tokens: list[Token], start: int, end: int, rest: int) -> Chunk:
        """Start, tokens, end and padding as a chunk; `start`, `end`, `rest`: the columns of those parts."""
        free, kept = self.room - len(tokens), len(self.lead) - self.encoder.cut + len(tokens) + len(self.tail)
        assert free >= 0, (len(tokens), self.length)
        padding = (Token(self.pad, rest),) * (free if self.encoder.padded else not kept)  # no text is empty
        lead, tail = ([Token(id, column) for id in ids] for ids, column in ((self.lead, start), (self.tail, end)))
        places = (*lead, *tokens, *tail, *padding)
        return Chunk(
            ids=tuple(place.id for place in places),
            rows=tuple(place.row for place in places),
            columns=tuple(place.column for place in places[self.encoder.cut :]),
            end=len(lead) + len(tokens),
        )

    def filler(self, rest: int) -> Chunk:
        """Lengthens a shorter caption: an empty chunk, all of it in the column `rest`; without padding, nothing."""
        empty = self.seal([], rest, rest, rest)
        return empty if self.encoder.padded else replace(empty, columns=())


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(id) for id in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _ids_behind(before: str, text: str, tokenizer: Any) -> list[int]:
    """The ids of a text as it is read behind another; alone if the two are read as one.

    A language model's byte pairs differ after a space. T5's and its kind put one before what is read alone.
    """
    first, both = _ids(tokenizer, before), _ids(tokenizer, before + text)
    rest = both[len(first) :]
    return rest if rest and both == first + rest else _ids(tokenizer, text)


def _ends(encoder: TextEncoder) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after the tokens of a chunk. InputError: without a template, no start or end token."""
    tokenizer = encoder.tokenizer
    if encoder.template is not None:
        before, after = encoder.template
        return tuple(_ids(tokenizer, before.rstrip(" "))), tuple(_ids(tokenizer, after))
    start, end = [tokenizer.bos_token_id] * encoder.starts, [tokenizer.eos_token_id]
    if None in start + end:
        raise InputError("The tokenizer has no start or end token: use the one made for this model.")
    return tuple(start), tuple(end)


def read(vocabulary: Vocabulary, caption: str, words: str, rows: Sequence[int] | None) -> Reading:
    """Tokens of a caption, with the subject in place of every `{subject}`: its words, or ids that stand for `rows`.

    Columns (ours): start; one for each token of the text; one for each whole subject; end; rest. They depend on the
    text only, not on the subject's ids, so both versions of a caption share them. Groups follow ComfyUI: a learned
    identifier is a group, and so is the text between two of them.
    """
    groups: list[list[Token]] = [[]]
    labels = [START_LABEL]
    texts = (vocabulary.opening + caption).split(SUBJECT)
    for i, text in enumerate(texts):
        if i:
            before = texts[i - 1][-1:]
            ids = rows or vocabulary.ids(f" {words}" if before.isspace() else words, before)
            span = [Token(id, len(labels), row if rows else -1) for row, id in enumerate(ids)]
            groups = [*groups, span, []] if rows else [*groups[:-1], groups[-1] + span]
            labels.append(SUBJECT_LABEL)
        for label, id in vocabulary.tokens(text, _WORD if i else ""):
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
    `<rest>`; for each sequence of the encoders its own. `filler`: lengthens the shorter of two captions. `places`: of
    each sequence's first encoder.
    """

    tuned: list[tuple[Chunk, ...]]
    prior: list[tuple[Chunk, ...]]
    labels: list[str]
    filler: tuple[Chunk, ...]
    places: list[int]

    @property
    def num_chunks(self) -> int:
        """The number of chunks that both versions are padded to."""
        return max(len(self.tuned), len(self.prior))

    def chunks(self, *, tuned: bool, num_chunks: int) -> list[tuple[Chunk, ...]]:
        """A version's chunks, followed by empty ones up to `num_chunks`."""
        chunks = self.tuned if tuned else self.prior
        return chunks + [self.filler] * (num_chunks - len(chunks))

    def columns(self, *, tuned: bool, num_chunks: int) -> list[int]:
        """The column of every sequence position of these chunks."""
        chunks = self.chunks(tuned=tuned, num_chunks=num_chunks)
        return [column for chunk in chunks for place in self.places for column in chunk[place].columns]


def lay_out(
    caption: str, vocabularies: list[Vocabulary], tuned: str, prior: str, learned: list[list[int]] | None
) -> TokenLayout:
    """Read a caption with every encoder's tokenizer.

    `tuned`, `prior`: the subject's words; `learned`: per encoder, the ids that stand for its rows in the tuned version.
    InputError: two tokenizers place tokens differently, although their outputs are joined position by position.
    """
    sequences = [vocabulary.encoder.sequence for vocabulary in vocabularies]
    firsts = [i if sequence is None else sequences.index(sequence) for i, sequence in enumerate(sequences)]
    versions: list[list[tuple[Chunk, ...]]] = []
    labels: list[str] = []
    empty: list[Chunk] = []
    for words, rows in ((tuned, learned), (prior, None)):
        readings = [read(v, caption, words, rows[i] if rows else None) for i, v in enumerate(vocabularies)]
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
    return TokenLayout(versions[0], versions[1], labels, tuple(empty), list(begins))


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

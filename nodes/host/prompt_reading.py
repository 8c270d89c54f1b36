"""A text as the host's tokenizer reads it: which token or embedding is at which position.

In: the output of `CLIP.tokenize`. Not in: the columns derived from it (`prompt_columns`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from ...apt_train.errors import InputError
from ..prompt_columns import Piece, Reading

_CLIPS = {"l", "g", "h"}  # the host's names for CLIP's tokenizers
_MENTION = re.compile(r"(?:^|(?<=[\s(]))embedding:([^\s,:()<\[]+)")
_Tokens = list[tuple[Any, int]]  # token (a vocabulary id or an embedding's row), position


def read_prompt(clip: Any, text: str) -> Reading:
    """The text's pieces, with their positions in what the UNet reads.

    InputError: another kind of text encoder, an embedding that is missing or for another model, tokenizers that
    disagree.
    """
    chunked = _chunks(clip, text)
    readings = [_read(clip, name, chunks, text) for name, chunks in chunked.items()]
    if any(_places(reading) != _places(readings[0]) for reading in readings):
        raise InputError(
            f"The two tokenizers of the CLIP read {text!r} differently, so no column fits both: leave out the "
            "embedding that only one of them knows."
        )
    return readings[0]


def _chunks(clip: Any, text: str) -> dict[str, list[Any]]:
    chunks = clip.tokenize(text, return_word_ids=True)
    if not set(chunks) <= _CLIPS:
        raise InputError(
            f"The CLIP is a {type(clip.cond_stage_model).__name__}, whose tokens no UNet reads one by one: wire the "
            "CLIP of a model of SD1.5 or SDXL."
        )
    return {name: chunks[name] for name in sorted(chunks, reverse=True)}  # l before g


def _read(clip: Any, name: str, chunks: Sequence[Sequence[Any]], text: str) -> Reading:
    tokenizer = getattr(clip.tokenizer, f"clip_{name}")
    groups: dict[int, _Tokens] = {}
    for number, chunk in enumerate(chunks):
        for place, (token, _weight, group) in enumerate(chunk):
            if group:  # 0: start, end, padding
                groups.setdefault(group, []).append((token, number * len(chunk) + place))
    names = iter(_embedding_names(clip, text, sum(_is_embedding(tokens) for tokens in groups.values())))
    pieces: list[Piece] = []
    for tokens in groups.values():
        pieces += [_embedding(tokens, next(names), tokenizer)] if _is_embedding(tokens) else _words(tokens, tokenizer)
    return Reading(tuple(pieces), sum(len(chunk) for chunk in chunks))


def _is_embedding(tokens: _Tokens) -> bool:
    return torch.is_tensor(tokens[0][0])


def _embedding_names(clip: Any, text: str, found: int) -> list[str]:
    """The names of a text's embeddings, in order. For a missing one the host only writes a line in its log."""
    names = _MENTION.findall(text)
    if len(names) == found:
        return names
    for name in names:
        alone = clip.tokenize(f"embedding:{name}").values()
        if not any(torch.is_tensor(token) for chunks in alone for chunk in chunks for token, *_ in chunk):
            raise InputError(
                f"There is no embedding {name!r} in the folders of embeddings: check its name, or train it first."
            )
    return ["embedding"] * found


def _embedding(tokens: _Tokens, name: str, tokenizer: Any) -> Piece:
    width = tokens[0][0].shape[-1]
    if width != tokenizer.embedding_size:
        raise InputError(
            f"The embedding {name!r} is {width} wide, where this CLIP reads {tokenizer.embedding_size}: it belongs to "
            "another kind of model."
        )
    keys = tuple(row.detach().float().cpu().numpy().tobytes() for row, _ in tokens)
    return Piece(name, keys, tuple(position for _, position in tokens))


def _words(tokens: _Tokens, tokenizer: Any) -> list[Piece]:
    """One piece per token; the tokens of a longer word are numbered."""
    words: list[_Tokens] = [[]]
    for token in tokens:
        words[-1].append(token)
        if tokenizer.inv_vocab[token[0]].endswith("</w>"):
            words.append([])
    pieces: list[Piece] = []
    for word in filter(None, words):
        label = tokenizer.decode([id for id, _ in word]).strip()
        names = [label] if len(word) == 1 else [f"{label} {i}/{len(word)}" for i in range(1, len(word) + 1)]
        pieces += [Piece(name, (id,), (position,)) for name, (id, position) in zip(names, word, strict=True)]
    return pieces


def _places(reading: Reading) -> list[Any]:
    """What the tokenizers of a CLIP must agree on: ids and positions. An embedding's rows may differ in content."""
    return [(piece.positions, [key for key in piece.keys if isinstance(key, int)]) for piece in reading.pieces] + [
        reading.length
    ]

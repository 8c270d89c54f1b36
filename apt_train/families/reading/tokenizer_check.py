"""Checks a tokenizer's files and copies only what passed, so that transformers reads nothing unchecked.

In: the tables for these files. Not in: finding a vocabulary and building its tokenizer (`tokenizer_files`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ...disk.files import write_text
from ...disk.json_file import AGAIN, is_list, is_object, place, read_json_object, shown
from ...errors import InputError
from .config_check import (
    Check,
    Table,
    Wrong,
    checked,
    either,
    flag,
    mapping,
    number,
    one_of,
    optional,
    record,
    several,
    text,
    whole,
)  # fmt: skip

MOST_BYTES = 1 << 24  # CLIP's tokenizer.json has 2.2 million bytes
_MOST_ADDED = 10_000
LEAST_POSITIONS = 10  # the host's longest uncut group of 7 tokens, start and end, and one to spare
MOST_TOKENS = 1_000_000

_TOKEN_FLAGS: Table = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), flag)
_ADDED = record({"__type": one_of("AddedToken"), "content": text(), **_TOKEN_FLAGS}, needed=("content",))
_TOKEN = either(text(), _ADDED)
_TOKENS = optional(either(several(_TOKEN, least=0, most=_MOST_ADDED), mapping(_TOKEN, most=_MOST_ADDED)))
_SPECIAL: Table = {
    **{f"{name}_token": optional(_TOKEN) for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")},
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _TOKENS,
}
_CONFIG: Table = {
    **_SPECIAL,
    "model_max_length": optional(number(LEAST_POSITIONS, 1e31)),
    "added_tokens_decoder": mapping(_ADDED, most=_MOST_ADDED),
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    **dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"), flag),
    **dict.fromkeys(("clean_up_tokenization_spaces", "do_lower_case"), optional(flag)),
}
_ID = whole(0, MOST_TOKENS)
_VOCABULARY = mapping(_ID, most=MOST_TOKENS)


def _steps(value: Any) -> Any:
    """A part of tokenizer.json such as its normalizer: small, with linear-time patterns and little inserted text."""
    if not is_object(value):
        raise Wrong("an object")
    left: list[tuple[str, Any]] = [("", value)]
    seen = written = 0
    while left:
        name, item = left.pop()
        seen += 1
        written += len(str(item)) if name == "content" else 0
        longest = 1 << 20 if name == "precompiled_charsmap" else 500  # T5's table of letters has 300,000
        if seen > 500 or written > 8 or (isinstance(item, str) and len(item) > longest):
            raise Wrong("an object of a few short steps")
        if name == "Regex" and not (isinstance(item, str) and _is_linear(item)):
            raise Wrong("an object with simple patterns, as CLIP's are")
        if is_object(item):
            left += item.items()
        if is_list(item):
            left += [("", inner) for inner in item]
    return value


def _is_linear(pattern: str) -> bool:
    """Alternatives without groups and with at most one repetition each, so that no text causes backtracking."""
    bare = re.sub(r"\\p\{\w+\}|\\.", "x", pattern)
    bare = re.sub(r"\[[^\]]*\]", "x", bare)
    return "(" not in bare and all(len(re.findall(r"[*+?{]", branch)) <= 1 for branch in bare.split("|"))


_WORD = optional(text())
_SIDE = one_of("Left", "Right")
_SIZE = whole(0, 100_000)
_TRUNCATION = record({"direction": _SIDE, "max_length": _SIZE, "strategy": text(), "stride": _SIZE})
_PADDING = record(
    {
        "strategy": either(one_of("BatchLongest"), record({"Fixed": _SIZE}, needed=("Fixed",))),
        "direction": _SIDE,
        "pad_to_multiple_of": optional(_SIZE),
        "pad_id": _ID,
        "pad_type_id": _SIZE,
        "pad_token": text(),
    }
)
_PAIR = several(text(), least=2, most=2)
_SCORED = several(either(text(), number(-1e9, 1e9)), least=2, most=2)
_MODEL: Table = {
    "type": one_of("BPE", "WordLevel", "WordPiece", "Unigram"),
    "dropout": optional(number(0, 0)),  # any other value would tokenize the same caption differently each time
    "unk_token": _WORD,
    "unk_id": optional(_ID),
    "continuing_subword_prefix": _WORD,
    "end_of_word_suffix": _WORD,
    "fuse_unk": flag,
    "byte_fallback": flag,
    "ignore_merges": flag,
    "max_input_chars_per_word": _SIZE,
    "vocab": either(_VOCABULARY, several(_SCORED, most=MOST_TOKENS)),
    "merges": several(either(text(500), _PAIR), least=0, most=MOST_TOKENS),
}
_WHOLE: Table = {
    "version": text(),
    "truncation": optional(_TRUNCATION),
    "padding": optional(_PADDING),
    "added_tokens": several(record({"id": _ID, "content": text(), **_TOKEN_FLAGS}), least=0, most=_MOST_ADDED),
    **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"), optional(_steps)),
    "model": record(_MODEL, needed=("vocab",)),
}
_FILES: dict[str, Table | Check] = {
    "tokenizer_config.json": _CONFIG,
    "special_tokens_map.json": _SPECIAL,
    "tokenizer.json": _WHOLE,
    "added_tokens.json": _VOCABULARY,
    "vocab.json": _VOCABULARY,
}


def copy_checked(folder: Path, target: Path) -> None:
    """Write the permitted content of the files in `folder` into files of the same names. InputError: one is wrong."""
    for name, table in _FILES.items():
        path = folder / name
        if path.is_file():
            values = read_json_object(path, MOST_BYTES)
            if callable(table):
                values = checked({"values": values}, {"values": table}, place(path))["values"]
            else:
                values = checked(values, table, place(path))
            write_text(target / name, json.dumps(values))
    if (folder / "merges.txt").is_file():
        write_text(target / "merges.txt", _merges(folder / "merges.txt"))


def _merges(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{place(path)} has {path.stat().st_size} bytes, more than {MOST_BYTES}: {AGAIN}.")
    try:
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{place(path)} is no text in UTF-8: {AGAIN}.") from None
    for at, line in enumerate(lines, start=1):
        if line and len(line.split(" ")) != 2:  # its first line, "#version: 0.2", also has two words
            raise InputError(f"{place(path)} has {shown(line)} in line {at} instead of two words: {AGAIN}.")
    return "\n".join(lines)

"""Single-file checkpoints whose safetensors header, length or bytes are damaged."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from apt_train.families.load import load_checkpoint
from tests.tiny_checkpoint import single_file_tensors, tiny_modules, write_clip_vocabulary, write_safetensors

from .case import Case, packed
from .damage import VALUES, Edit, byte_edits, cases_of, file_edits, header_edits

FILE = "model.safetensors"
IN = "model.diffusion_model.input_blocks.0.0.weight"
WORD = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
DTYPES = ["F8_E4M3", "F8_E5M2", "F64", "I64", "BOOL", "U8", "BF16", "F16", "F4", "C64", "", "float16", "f16"]


def sample(folder: Path) -> None:
    write_safetensors(folder / FILE, single_file_tensors(tiny_modules("sd15")), torch.float16, {"format": "pt"})
    write_clip_vocabulary(folder / "tokenizer")


def run(folder: Path, case: Case) -> None:
    load_checkpoint(folder / FILE, tokenizer=folder / "tokenizer")


def cases(folder: Path) -> SearchStrategy[Case]:
    return cases_of(
        st.one_of(header_edits(folder / FILE, FILE), _entries(), _length(), byte_edits(FILE), file_edits(FILE)), most=2
    )


def _entries() -> SearchStrategy[Edit]:
    """Damage inside one tensor's entry, which is where it hurts."""
    tensor = st.sampled_from([IN, WORD, "first_stage_model.encoder.conv_in.weight", "model.diffusion_model.out.2.bias"])
    number = st.one_of(VALUES, st.integers(-2, 2**64).map(str))
    offsets = st.lists(number, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
    shape = st.lists(number, max_size=6).map(lambda items: "[" + ", ".join(items) + "]")
    return st.one_of(
        st.tuples(st.just("header"), st.just(FILE), tensor.map(lambda name: [name, "data_offsets"]), _set, offsets),
        st.tuples(st.just("header"), st.just(FILE), tensor.map(lambda name: [name, "shape"]), _set, shape),
        st.tuples(
            st.just("header"), st.just(FILE), tensor.map(lambda name: [name, "dtype"]), _set,
            st.sampled_from(DTYPES).map(json.dumps),
        ),
        st.tuples(st.just("header"), st.just(FILE), st.just(["__metadata__"]), _set, _metadata),
    )  # fmt: skip


_set = st.just("set")
_metadata = st.dictionaries(
    st.sampled_from(["modelspec.prediction_type", "modelspec.architecture", "ss_zero_terminal_snr", "format", "x"]),
    st.one_of(st.text(max_size=5), st.none(), st.integers(), st.lists(st.integers(), max_size=2)),
    max_size=3,
).map(json.dumps)


def _length() -> SearchStrategy[Edit]:
    """Another length of the header, right or wrong, before the same bytes."""
    sizes = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2, 7, 8, 100_000_000, 100_000_001, 2**63]))
    return sizes.map(lambda size: ("bytes", FILE, "overwrite", 0.0, struct.pack("<Q", size).hex()))


def hostile() -> list[Case]:
    entry = [
        ("shape", "null"), ("shape", '"32"'), ("shape", "[-1, 4, 3, 3]"), ("shape", "[1e400]"), ("shape", "[true]"),
        ("shape", "[9223372036854775808]"), ("shape", '["4"]'), ("shape", "{}"), ("data_offsets", '["0", "8"]'),
        ("data_offsets", "[0]"), ("data_offsets", "[8, 0]"), ("data_offsets", "[-8, 8]"), ("data_offsets",
        "[0, 1e400]"),
        ("data_offsets", "null"), ("data_offsets", "[0, NaN]"), ("dtype", '"F4"'), ("dtype", "null"), ("dtype", "[]"),
    ]  # fmt: skip
    edited: list[Edit] = [("header", FILE, [IN, key], "set", raw) for key, raw in entry]
    edited += [("header", FILE, [], "set", raw) for raw in ("@nest 100000", "[]", "null", "{}", '"x"', "1", "\ud800")]
    edited += [("header", FILE, ["__metadata__"], "set", raw) for raw in ("[]", '{"a": 1}', '"x"', "@nest 100000")]
    edited += [("header", FILE, [IN, "shape"], "set", "@nest 100000"), ("header", FILE, [WORD], "double", "{}")]
    for metadata in ('{"modelspec.prediction_type": null}', '{"ss_zero_terminal_snr": [1]}'):
        edited.append(("header", FILE, ["__metadata__"], "set", metadata))
    return [Case((edit,)) for edit in edited] + [Case((("write", FILE, _bomb()),))]


@functools.cache
def _bomb() -> str:
    """A million tensors of no bytes."""
    entry = ',"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{n}":{{{entry[1:]}' for n in range(300_000)) + "}").encode()
    return packed(struct.pack("<Q", len(header)) + header)

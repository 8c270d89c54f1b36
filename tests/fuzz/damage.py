"""What is drawn: hostile JSON values, edits of a JSON document, of bytes and of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .case import Case

Edit = tuple[Any, ...]

SIMPLE = ["null", "true", "false", "0", "1", "-1", "2", "0.5", '""', '"x"', "[]", "{}", "[0]", "[null]", '{"a": 1}']
NUMBERS = [
    "3", "7", "1000", "65537", "100000000", "2147483648", "4294967297", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1" + 400 * "0", "1" + 5000 * "0", "-2147483649", "-9223372036854775809", "1e400", "-1e400",
    "1e308", "1e-320", "-0.0", "NaN", "Infinity", "-Infinity", "1.5",
]  # fmt: skip
TEXTS = [
    '"x/y"', '"../../x"', '"/etc/passwd"', '"~"', '"\\u0000"', '"\\ud800"', '"a\\nb"', '"{}"', '"%s"', '"nan"',
    '"float16"', '"http://example.invalid/x"', '"@long"',
]  # fmt: skip
LONG = ["@nest 300", "@nest 100000", "@long 100000", "@many 10000 0", "@many 1000 {}", '[[1], "a", null]']
BROKEN = ["", "nul", "[", "{", '"', "[1,]", "{1: 2}", "\ufeff{}", "'x'", "1 2", "\x00", "\ud800"]

VALUES: SearchStrategy[str] = st.one_of(
    st.sampled_from(SIMPLE),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(LONG),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(json.dumps),
    st.text(max_size=8).map(json.dumps),
)


def places_of(document: Any, most: int = 8) -> Iterator[list[Any]]:
    """Paths to a document's nodes; of a long list or dictionary the first few, of which one stands for all."""
    items: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())[:most]
    elif isinstance(document, list):
        items = list(enumerate(document))[:3]
    for name, value in items:
        yield [name]
        for rest in places_of(value, most):
            yield [name, *rest]


def json_actions(document: Any, extra: Sequence[str] = (), most: int = 8) -> SearchStrategy[Edit]:
    """(places, action, raw) for a document; `extra`: keys that it does not have but a reader may know."""
    places = list(places_of(document, most))
    known, new = st.sampled_from(places), st.sampled_from([[name] for name in extra] or [["unknown"]])
    swapped = st.sampled_from(places).map(lambda path: json.dumps(_at(document, path)))
    return st.one_of(
        st.tuples(known, st.just("set"), VALUES),
        st.tuples(known, st.just("set"), swapped),
        st.tuples(known, st.just("set"), known.map(lambda path: json.dumps([_at(document, path)]))),
        st.tuples(known, st.just("delete"), st.just("")),
        st.tuples(known, st.just("double"), VALUES),
        st.tuples(known.filter(lambda path: isinstance(path[-1], str)), st.just("rename"), st.text(max_size=5)),
        st.tuples(new, st.just("set"), st.one_of(VALUES, swapped)),
        st.tuples(st.just([]), st.just("set"), st.one_of(VALUES, st.sampled_from(BROKEN))),
    )


def _at(document: Any, places: list[Any]) -> Any:
    for place in places:
        document = document[place]
    return document


def json_edits(file: Path, name: str, extra: Sequence[str] = (), most: int = 8) -> SearchStrategy[Edit]:
    """Edits of the JSON file `name`, which lies at `file` in the sample."""
    actions = json_actions(json.loads(file.read_bytes()), extra, most)
    return actions.map(lambda action: ("json", name, *action))


def header_edits(file: Path, name: str, most: int = 40) -> SearchStrategy[Edit]:
    """Edits of a safetensors file's header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    extra = ["__metadata__", "__metadata__ ", "", "x", "model.diffusion_model.x", "lora_unet_x.lora_up.weight"]
    return json_actions(header, extra, most).map(lambda action: ("header", name, *action))


def byte_edits(name: str) -> SearchStrategy[Edit]:
    """Bits flipped, bytes put in, written over and taken out, the rest zeroed or cut off."""
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.01), st.sampled_from([0.0, 1.0]))
    data = st.binary(min_size=1, max_size=12).map(bytes.hex)
    actions = st.sampled_from(["flip", "insert", "overwrite", "drop", "zero", "cut"])
    return st.tuples(st.just("bytes"), st.just(name), actions, place, data)


def file_edits(name: str) -> SearchStrategy[Edit]:
    """The file gone, empty, a folder, a link to nothing, to itself, or to what is not a file."""
    return st.one_of(
        st.just(("remove", name)),
        st.just(("text", name, "")),
        st.just(("folder", name)),
        st.sampled_from(["nowhere", ".", Path(name).name, "/dev/null"]).map(lambda target: ("link", name, target)),
    )


def cases_of(edits: SearchStrategy[Edit], most: int = 3, arguments: Any = None) -> SearchStrategy[Case]:
    given = arguments if isinstance(arguments, SearchStrategy) else st.just(arguments)
    return st.builds(Case, st.lists(edits, min_size=1, max_size=most).map(tuple), given)

"""Caption files of odd bytes and odd names; what is read trains one step."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from apt_train.data.dataset import load_images
from tests.training import run as train_on

from .case import Case, packed
from .damage import Edit, byte_edits, cases_of, file_edits

TEXT = "a photo of toy on grass"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis", "utf-7"]
WORDS = ["toy", "{subject}", "toy_subject", "embedding:toy_subject", "{class_word}", "{", "}", "%s", "\n", "\r", "\x00",
         "<unk>", "<bos>", "<eos>", "<pad>", "\u202e", "\ufeff", "\u2028", "e\u0301", "💥", "(toy:1.2)", "BREAK",
         "<lora:x:1>",
         "a" * 100, ",", "\\", "'", "\ud800"]  # fmt: skip


def sample(folder: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / "a.txt").write_text(TEXT)


def run(folder: Path, case: Case) -> None:
    images = load_images(folder)
    settings = {"class_word": "toy", **(case.arguments or {})}
    train_on(images=images, steps=1, batch_size=1, augment_variants=1, **settings)


def cases(folder: Path) -> SearchStrategy[Case]:
    edits = st.one_of(_texts(), _texts(), _bytes(), byte_edits("a.txt"), file_edits("a.txt"), _names())
    return cases_of(edits, arguments=_settings())


def _texts() -> SearchStrategy[Edit]:
    text = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=12).map(" ".join)
    long = st.tuples(st.sampled_from(WORDS), st.integers(1, 40_000)).map(lambda pair: (pair[0] + " ") * pair[1])
    names = st.sampled_from(["a.txt", "b.txt", "a.caption", "captions.jsonl", "metadata.jsonl"])
    return st.tuples(st.just("text"), names, st.one_of(text, text, long), st.sampled_from(ENCODINGS))


def _bytes() -> SearchStrategy[Edit]:
    return st.tuples(
        st.just("write"), st.sampled_from(["a.txt", "b.txt", "a.caption"]), st.binary(max_size=40).map(packed)
    )


def _names() -> SearchStrategy[Edit]:
    """Names that mean something elsewhere, of captions, pictures and their company."""
    names = ["c.txt", "A.TXT", ".txt", "a..txt", "a.png.txt", "a-mask.txt", "ä.txt", "ä.txt", "a\nb.txt", " .txt",
        "x" * 200 + ".txt",
             "Thumbs.db", "._a.txt", ".a.txt", "a.txt~", "con.txt"]  # fmt: skip
    return st.tuples(st.just("duplicate"), st.sampled_from(["a.txt", "a.png"]), st.sampled_from(names))


def _settings() -> SearchStrategy[dict[str, str] | None]:
    texts = st.one_of(st.sampled_from(WORDS[:-1]), st.text(max_size=8))
    choices = st.fixed_dictionaries({}, optional={
        "class_word": texts, "identifier": texts, "caption_template": texts, "init_word": texts, "class_caption": texts,
    })  # fmt: skip
    return st.one_of(st.none(), choices)


def hostile() -> list[Case]:
    texts: list[Edit] = [("text", "a.txt", text, "utf-8") for text in ("\x00", "toy " * 20_000, "{subject}" * 5_000,
        "toy" + "\u0301" * 10_000, "\u202etoy", "a toy\n\nand more", "nothing of it", " \n ",
        "\ud800 toy")]  # fmt: skip
    coded: list[Edit] = [("text", "a.txt", "a toy on grass, müßig", code) for code in ENCODINGS]
    settings = [{"class_word": word} for word in ("", " ", "{subject}", "\x00", "a" * 10_000, "(", "\\", "toy\n")]
    settings += [{"caption_template": text} for text in ("", "{subject", "{0}", "{subject!r}", "%", "toy" * 10_000)]
    return [
        *(Case((edit,)) for edit in texts + coded), *(Case((), setting) for setting in settings),
        Case((("folder", "a.txt"),)), Case((("link", "a.txt", "/dev/zero"),)), Case((("mode", "a.txt", 0),)),
        Case((("write", "a.txt", packed(b"\xff" * 100)),)), Case((("text", "a.txt", json.dumps({"caption": "toy"})),)),
    ]  # fmt: skip

"""Prompts of two models matched token by token, and what is told of their attention: without the host.

Not here: the host's own tokenizer and models (`tests/host/test_attention_preview.py`).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from .node_modules import node_module

ROOT = Path(__file__).resolve().parent.parent
ROOM = 10  # positions of a chunk


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """`nodes/prompt_columns.py` and `nodes/attention_table.py` under the pack's relative imports, without the host."""
    for name, folder in (("columns_under_test", ROOT), ("columns_under_test.nodes", ROOT / "nodes")):
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    both = ModuleType("both")
    for name in ("prompt_columns", "attention_table"):
        both.__dict__[name] = importlib.import_module(f"columns_under_test.nodes.{name}")
    yield both
    for name in [name for name in sys.modules if name.startswith("columns_under_test")]:
        del sys.modules[name]


@pytest.fixture
def columns(pack: Any) -> Any:
    return pack.prompt_columns


@pytest.fixture
def read(columns: Any) -> Any:
    """A tokenizer like the host's, small: words of at most 6 letters are one token, longer ones several.

    `embedding:NAME` is as many rows as NAME's first letter says (`2toy`); a weight `(words:1.2)` leaves no trace.
    """

    def read(text: str) -> Any:
        pieces, position = [], 1
        for word in re.findall(r"embedding:\w+|[a-z]+|[^\sa-z]", re.sub(r"[()]|:[\d.]+\)", " ", text.lower())):
            if word.startswith("embedding:"):
                groups: list[tuple[Any, ...]] = [tuple(f"{word}{row}".encode() for row in range(int(word[10])))]
            else:
                groups = [(word[i : i + 6],) for i in range(0, len(word), 6)]
            for keys in groups:
                places = []
                for _ in keys:
                    position += 2 if position % ROOM == ROOM - 1 else 0  # over a chunk's end and the next one's start
                    places.append(position)
                    position += 1
                label = word[10:] if len(keys) > 1 else str(*keys)
                pieces.append(columns.Piece(label, keys, tuple(places)))
        return columns.Reading(tuple(pieces), (position // ROOM + 1) * ROOM)

    return read


def matched(columns: Any, read: Any, prompt: str, trigger: str = "", class_word: str = "") -> Any:
    return columns.match(columns.Texts.of(prompt, trigger, class_word), read)


def test_each_token_has_a_column_and_the_subject_one_however_long_it_is(columns: Any, read: Any) -> None:
    found = matched(columns, read, "a {subject} on grass", "embedding:2toy", "bear")
    assert found.labels == ["<start>", "a", "<subject>", "on", "grass", "<end>", "<rest>"]
    assert found.prior == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6]
    assert found.tuned == [0, 1, 2, 2, 3, 4, 5, 6, 6, 6]


def test_a_trigger_that_holds_the_class_word_is_not_torn_apart(columns: Any, read: Any) -> None:
    """The class word right after the trigger's own, and once more in the text."""
    found = matched(columns, read, "toy {subject} toy", "sks toy", "toy")
    assert found.prior == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert found.tuned == [0, 1, 2, 2, 3, 4, 5, 5, 5, 5]


def test_two_subjects_have_a_column_each(columns: Any, read: Any) -> None:
    found = matched(columns, read, "{subject} and {subject}", "sks toy", "toy")
    assert found.labels == ["<start>", "<subject>", "and", "<subject>", "<end>", "<rest>"]
    assert found.tuned == [0, 1, 1, 2, 3, 3, 4, 5, 5, 5]


def test_weights_and_punctuation_around_the_subject_do_not_disturb(columns: Any, read: Any) -> None:
    found = matched(columns, read, "a ({subject}:1.2), on grass", "embedding:2toy", "bear")
    assert found.labels == ["<start>", "a", "<subject>", ",", "on", "grass", "<end>", "<rest>"]
    assert found.tuned == [0, 1, 2, 2, 3, 4, 5, 6, 7, 7]


def test_a_prompt_that_holds_the_word_used_to_find_the_subject(columns: Any, read: Any) -> None:
    found = matched(columns, read, "the subject of {subject}", "sks", "toy")
    assert found.labels[1:5] == ["the", "subjec", "t", "of"]
    assert found.prior[:6] == [0, 1, 2, 3, 4, 5] and found.labels[5] == "<subject>"


def test_long_prompts_go_on_in_further_chunks(columns: Any, read: Any) -> None:
    """One version may need a chunk more than the other; starts and ends of further chunks are rest."""
    found = matched(columns, read, "{subject} one two three four five six", "embedding:3toy", "bear")
    rest, end = len(found.labels) - 1, len(found.labels) - 2
    assert found.prior == [0, 1, 2, 3, 4, 5, 6, 7, end, rest]
    assert found.tuned == [0, 1, 1, 1, 2, 3, 4, 5, 6, end, rest, 7, *[rest] * 8]


def test_an_embedding_outside_the_subject_is_one_column(columns: Any, read: Any) -> None:
    found = matched(columns, read, "a toy embedding:3style")
    assert found.labels == ["<start>", "a", "toy", "3style", "<end>", "<rest>"]
    assert found.prior == found.tuned == [0, 1, 2, 3, 3, 3, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("trigger", "class_word", "prior", "tuned"),
    [("sks", "toy", "a toy", "a sks"), ("sks", "", "a sks", "a sks"), ("", " toy ", "a toy", "a toy")],
)
def test_who_reads_what(columns: Any, trigger: str, class_word: str, prior: str, tuned: str) -> None:
    texts = columns.Texts.of(" a {subject}\n", trigger, class_word)
    assert (texts.prior, texts.tuned) == (prior, tuned)
    same = [f"both read: {prior}"]
    assert texts.sentences == (same if prior == tuned else [f"prior reads: {prior}", f"tuned reads: {tuned}"])


@pytest.mark.parametrize(
    ("prompt", "trigger", "class_word", "says"),
    [
        ("  ", "sks", "toy", "The prompt is empty"),
        ("a {subject}", "", " ", "nothing says what stands for it"),
        ("a {subject}land", "sks", "toy", "inside a longer word"),
        ("a {subject}", "sks", "()", "is read as nothing"),
        ("a {subject}_", "embedding:2toy", "toy", "read differently inside the prompt"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    columns: Any, read: Any, prompt: str, trigger: str, class_word: str, says: str
) -> None:
    error = sys.modules[columns.__package__.rpartition(".")[0] + ".apt_train.errors"].InputError
    with pytest.raises(error, match=says) as refusal:
        matched(columns, read, prompt, trigger, class_word)
    assert str(refusal.value).endswith(".") and ": " in str(refusal.value)


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ("", "<start> a <subject> on grassl and near a toy <end> <rest>"),
        ("grassland", "grassl and"),  # both tokens of the word
        ("A, on", "a on a"),
        ("near a", "near a"),  # these words in this order
        ("{subject},<END>", "<subject> <end>"),
        ("sks", "<subject>"),
        ("toy", "<subject> toy"),  # the class word stands in the text too
        ("(near:1.2)", "near"),
    ],
)
def test_words_are_chosen_whole(columns: Any, read: Any, wanted: str, labels: str) -> None:
    texts = columns.Texts.of("a {subject} on grassland near a toy", "sks", "toy")
    found = columns.match(texts, read)
    assert [found.labels[i] for i in columns.choose(found, wanted, texts, read)] == labels.split()


@pytest.mark.parametrize("wanted", ["beach", "grass", "{subject}", "<padding>"])
def test_a_word_that_is_not_there_is_refused(columns: Any, read: Any, wanted: str) -> None:
    texts = columns.Texts.of("on grassland", "", "")
    error = sys.modules[columns.__package__.rpartition(".")[0] + ".apt_train.errors"].InputError
    with pytest.raises(error, match="choose among <start>, on, grassl, and, <end>, <rest>"):
        columns.choose(columns.match(texts, read), wanted, texts, read)


# --- the score and the table --------------------------------------------------------------------------------------


def test_equal_attention_scores_one_and_disjoint_attention_zero(pack: Any) -> None:
    compare = pack.attention_table.compare
    first, second = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    first[..., 0], second[..., 2] = 1, 1
    assert compare([first, second], [first, second]).alignment == 1
    assert compare([first], [second]).alignment == 0
    assert compare([first, first], [first, second]).alignment == 0.5  # layers count alike


def test_the_score_is_the_total_variation_whatever_the_layers_sizes(pack: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    prior, tuned = ([torch.rand(2, n, 5, generator=draw).softmax(-1) for n in (16, 4)] for _ in range(2))
    by_hand = [0.5 * (p - t).abs().sum(-1).mean() for p, t in zip(prior, tuned, strict=True)]
    found = pack.attention_table.compare(prior, tuned)
    assert found.alignment == pytest.approx(1 - float(sum(by_hand)) / 2, abs=1e-6)
    assert float(found.prior.sum()) == pytest.approx(1, abs=1e-6)


def test_the_table_says_what_each_token_gained_and_lost(pack: Any) -> None:
    prior, tuned = torch.tensor([[[0.5, 0.3, 0.2]]]), torch.tensor([[[0.5, 0.1, 0.4]]])
    found = pack.attention_table.compare([prior], [tuned])
    lines = pack.attention_table.table(found, ["<start>", "beach", "toy"], [1, 2], ["alignment 0.8"]).split("\n")
    assert lines[:2] == ["alignment 0.8", ""]
    assert [line.split() for line in lines[3:]] == [
        ["beach", "30.00%", "10.00%", "-20.00", "50.0%"],
        ["toy", "20.00%", "40.00%", "+20.00", "50.0%"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1
    same = pack.attention_table.table(pack.attention_table.compare([prior], [prior]), list("abc"), [0], [])
    assert same.split()[-1] == "-"


@pytest.mark.parametrize("known_to_both", [True, False])
def test_an_embedding_that_only_one_of_two_tokenizers_knows_is_refused(known_to_both: bool) -> None:
    """What its rows hold may differ, as the two are of different widths."""

    def tokens(width: int, known: bool) -> list[list[tuple[Any, float, int]]]:
        return [[(0, 1.0, 0), (torch.zeros(width), 1.0, 1) if known else (2, 1.0, 0), (2, 1.0, 0)]]

    parts = {f"clip_{name}": SimpleNamespace(embedding_size=width) for name, width in (("l", 2), ("g", 3))}
    read = {"l": tokens(2, True), "g": tokens(3, known_to_both)}
    clip = SimpleNamespace(tokenizer=SimpleNamespace(**parts), tokenize=lambda *_, **_options: read)
    says = "tokenizers of the CLIP read 'embedding:half' differently, so no column fits both"
    with node_module("host.prompt_reading") as module:
        with nullcontext() if known_to_both else pytest.raises(ValueError, match=says):
            assert [piece.label for piece in module.read_prompt(clip, "embedding:half").pieces] == ["half"]


def test_a_text_encoder_that_no_unet_reads_is_refused() -> None:
    clip = SimpleNamespace(tokenize=lambda *_, **_options: {"l": [], "t5xxl": []}, cond_stage_model=1)
    with node_module("host.prompt_reading") as module, pytest.raises(ValueError, match="CLIP is a int"):
        module.read_prompt(clip, "a toy")

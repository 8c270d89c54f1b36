"""The words for the subject: what a caption file may say, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apt_train.config import TrainConfig
from apt_train.errors import InputError
from apt_train.text.captions import caption_for, class_caption, mark_subject


def read(text: str | None, class_word: str = "toy", name: str = "toy_subject") -> str:
    return caption_for(text, "grass.png", template="a photo of {subject}", name=name, class_word=class_word)


@pytest.mark.parametrize("empty", [None, "", "  \n\t "])
def test_a_picture_without_a_caption_gets_the_template(empty: str | None) -> None:
    assert read(empty) == "a photo of {subject}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of {subject} on grass", "a photo of {subject} on grass"),
        ("{subject}, and {subject} again", "{subject}, and {subject} again"),
        ("a photo of {subject} with a toy", "a photo of {subject} with a toy"),
        ("a photo of toy_subject on grass", "a photo of {subject} on grass"),
        ("Toy_Subject's hat", "{subject}'s hat"),
        ("toy_subject and toy_subject.", "{subject} and {subject}."),
        ("a toy_subject toy on grass", "a {subject} on grass"),
        ("embedding:toy_subject, on grass", "{subject}, on grass"),
        ("a embedding:toy_subject.safetensors on grass", "a {subject} on grass"),
        ("a photo of toy on grass", "a photo of {subject} on grass"),
        ("A Toy, then a toy", "A {subject}, then a toy"),
        ("two lines\nof a  toy\n", "two lines of a {subject}"),
    ],
)
def test_the_subject_is_found(text: str, expected: str) -> None:
    assert read(text) == expected


def test_a_class_of_two_words_is_found_with_any_space_between() -> None:
    assert read("my Teddy\n bear on sand", class_word="teddy bear", name="ted") == "my {subject} on sand"
    with pytest.raises(InputError):
        read("my bear on sand", class_word="teddy bear", name="ted")


@pytest.mark.parametrize("text", ["a photo of toys", "a toymaker", "toy_subject2 on grass", "a toy-shop", "grass"])
def test_a_caption_without_the_subject_is_refused_by_file_name(text: str) -> None:
    with pytest.raises(InputError, match=r"grass\.png.*\{subject\}.*toy_subject"):
        read(text)


def test_a_name_that_is_a_class_word_is_read_as_the_subject() -> None:
    assert read("a photo of toy", name="toy") == "a photo of {subject}"


def test_words_are_text_not_patterns() -> None:
    assert read("a photo of a c++ toy", class_word="c++ toy") == "a photo of a {subject}"
    assert read(r"\1 toy", class_word="toy") == r"\1 {subject}"


def test_prompts_may_say_the_name() -> None:
    assert mark_subject("a zwx toy and a dog", name="zwx", class_word="toy") == "a {subject} and a dog"
    assert mark_subject("a toy and a dog", name="zwx", class_word="toy") == "a toy and a dog"


def test_prior_preservation_captions_read_the_class_word() -> None:
    assert class_caption("a photo of {class_word}", "teddy bear") == "a photo of teddy bear"
    assert class_caption("a  {subject} on grass\n", "toy") == "a toy on grass"


def test_the_trigger_names_the_subject_in_either_mode() -> None:
    learned = TrainConfig(class_word="toy", identifier="zwx")
    triggers = [learned.trigger, replace(learned, identifier_mode="word").trigger]
    assert triggers == ["embedding:zwx_embedding", "zwx toy"]
    for trigger in triggers:  # what the trigger says is what captions are read by
        assert read(f"a photo of {trigger}", name="zwx") == "a photo of {subject}"


def test_a_long_caption_is_shown_by_its_beginning() -> None:
    with pytest.raises(InputError, match="does not mention the subject") as refused:
        caption_for("\ufeff " * 5000, "a.png", template="", name="toy", class_word="toy")
    assert len(str(refused.value)) < 400

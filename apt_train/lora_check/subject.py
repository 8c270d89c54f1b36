"""A LoRA's subject: its class word, its trigger, a learned word's rows; and texts encoded with them.

In: the words, as given or from the file. Not in: measuring (`measures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..config import check_class_word
from ..errors import InputError
from ..families.components import Components
from ..names import EMBEDDING, EMBEDDING_SUFFIX
from ..settings_field import require_text
from ..text.captions import learned_name, marked_caption
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from ..wording import printable
from .lora_file import LoraFile


@dataclass(frozen=True)
class Subject:
    """`trigger`: the tuned model's words for `{subject}`; `class_word`: the prior's.

    `embedding`: a learned word's rows per text encoder (`clip_l`, `clip_g`), used as the trigger.
    """

    class_word: str
    trigger: str
    embedding: Mapping[str, Tensor] | None = None

    @staticmethod
    def of(
        lora: LoraFile, class_word: str = "", trigger: str = "", embedding: Mapping[str, Tensor] | None = None
    ) -> Subject:
        """Whatever is not given comes from the file, as APT Train writes it; without a trigger the class word is used.

        InputError: no class word, one that no prompt can contain, or a learned word without its rows.
        """
        word = " ".join(class_word.split()) or _words_of(lora.class_word)
        if not word:
            raise InputError(
                "class_word is empty and the LoRA does not say it: say what its subject is, for example dog or woman."
            )
        check_class_word(word)
        words = " ".join(trigger.split()) or _words_of(lora.trigger) or word
        require_text("trigger", words)
        if EMBEDDING in words.lower() and len(words.split()) > 1:
            raise InputError(f"The trigger is {words!r}: give the embedding alone, or plain words.")
        if learned_name(words) is None:
            return Subject(word, words)
        if embedding is None:
            raise InputError(
                f"The trigger is {words}, but that learned word was not found: put its file beside the LoRA or among "
                "the embeddings, or give plain words."
            )
        return Subject(word, words, _checked_rows(words, embedding))

    @property
    def name(self) -> str:
        """What captions may call it: the trigger without the additions that training makes to a name."""
        learned = learned_name(self.trigger)
        if learned is not None:
            return learned.removesuffix(EMBEDDING_SUFFIX) or self.trigger
        return self.trigger.removesuffix(f" {self.class_word}")

    def conditioner(self, components: Components) -> Conditioner:
        """Encodes texts with the encoders' current weights. InputError: the embedding is for another model."""
        encoders, identifier = components.text_encoders, None
        if self.embedding is not None:
            identifier = Identifier.from_rows(encoders, self.embedding, self.trigger, self.class_word)
        return Conditioner(encoders, identifier, class_word=self.class_word, name=self.name, trigger=self.trigger)

    def caption(self, text: str) -> str:
        """The text with `{subject}` as in training; a text without the subject stays as it is."""
        plain = " ".join(text.split())
        return marked_caption(plain, name=self.name, class_word=self.class_word) or plain


def _checked_rows(words: str, embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables in an embedding file. InputError: there is none, or training broke one."""
    rows = {key: tensor for key, tensor in embedding.items() if tensor.ndim == 2 and tensor.is_floating_point()}
    if not any(len(table) for table in rows.values()):
        raise InputError(f"The file of {words} holds no learned word: give its embedding as .safetensors.")
    if not all(bool(table.float().isfinite().all()) for table in rows.values()):
        raise InputError(f"The file of {words} holds values that are not numbers: take an earlier snapshot's.")
    return rows


def _words_of(said: str) -> str:
    """Text from a file, which may be anything, made safe for a terminal and a page."""
    return " ".join(printable(" ".join(said.split())).split())

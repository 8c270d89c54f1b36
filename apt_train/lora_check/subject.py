"""What a LoRA's subject is called: its class word, its trigger, a learned word's rows; and texts read with them.

In: the words, from what is given or what the file says. Not in: measuring (`probe`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import check_class_word
from ..data.dataset import ImageSet
from ..errors import InputError
from ..families.components import Components
from ..names import EMBEDDING_SUFFIX
from ..settings_field import require_text
from ..text.captions import EMBEDDING, learned_name, marked_caption
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from ..text.tokens import Vocabulary
from ..wording import printable
from .lora_file import LoraFile


@dataclass(frozen=True)
class Subject:
    """`trigger`: what the tuned model reads for `{subject}`; `class_word`: what the prior reads there.

    `embedding`: a learned word's rows by text encoder (`clip_l`, `clip_g`), which stand for the trigger.
    """

    class_word: str
    trigger: str
    embedding: Mapping[str, Tensor] | None = None

    @staticmethod
    def of(
        lora: LoraFile, class_word: str = "", trigger: str = "", embedding: Mapping[str, Tensor] | None = None
    ) -> Subject:
        """What is not given is taken from the file, as APT Train writes it; no trigger at all is the class word.

        InputError: no class word, one that no prompt can have, or a learned word without its rows.
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
        """What captions may call it: the trigger without what training puts around a name."""
        learned = learned_name(self.trigger)
        if learned is not None:
            return learned.removesuffix(EMBEDDING_SUFFIX) or self.trigger
        return self.trigger.removesuffix(f" {self.class_word}")

    def conditioner(self, components: Components) -> Conditioner:
        """Reads texts as the model's encoders do at this moment. InputError: the embedding is another model's."""
        identifier = None if self.embedding is None else self._identifier(components, self.embedding)
        return Conditioner(
            components.text_encoders, identifier, class_word=self.class_word, name=self.name, trigger=self.trigger
        )

    def caption(self, text: str) -> str:
        """With `{subject}` as training has it; a text that does not name the subject stays as it is."""
        plain = " ".join(text.split())
        return marked_caption(plain, name=self.name, class_word=self.class_word) or plain

    def captions(self, images: ImageSet, template: str) -> list[str]:
        """One per picture; those without a caption get the template."""
        return [self.caption(image.caption or template) for image in images.images]

    def _identifier(self, components: Components, embedding: Mapping[str, Tensor]) -> Identifier:
        rows: list[Tensor] = []
        ids: list[list[int]] = []
        keys: list[str] = []
        for encoder in components.text_encoders:
            key, width = encoder.embedding_key, encoder.table.shape[1]
            found = embedding.get(key)
            if found is None or not len(found) or found.shape[1] != width:
                raise InputError(
                    f"The embedding of {self.trigger} has no rows for this model's {key} ({width} wide): give the one "
                    "that was trained with the LoRA."
                )
            place = Vocabulary.of(encoder).ids(self.class_word) or [0]
            rows.append(found.to(torch.float32))
            ids.append([place[0]] * len(found))
            keys.append(key)
        device = components.text_encoders[0].table.device
        return Identifier(rows, ids, keys, self.class_word).to(device)


def _words_of(said: str) -> str:
    """What a file says, which may be anything, as words for a terminal and a page."""
    return " ".join(printable(" ".join(said.split())).split())


def _checked_rows(words: str, embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables among an embedding file's tensors. InputError: there is none, or one that was broken in training."""
    rows = {key: tensor for key, tensor in embedding.items() if tensor.ndim == 2 and tensor.is_floating_point()}
    if not any(len(table) for table in rows.values()):
        raise InputError(f"The file of {words} holds no learned word: give its embedding as .safetensors.")
    if not all(bool(table.float().isfinite().all()) for table in rows.values()):
        raise InputError(f"The file of {words} holds values that are no numbers: take an earlier snapshot's.")
    return rows

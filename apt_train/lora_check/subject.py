"""What a LoRA's subject is called: its class word, its trigger, a learned word's rows; and texts read with them.

In: the words, from what is given or what the file says. Not in: measuring (`probe`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import ImageSet
from ..errors import InputError
from ..families.components import Components
from ..text.captions import SUBJECT, mark_subject
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from ..text.tokens import Vocabulary
from .lora_file import LoraFile

LEARNED = "embedding:"


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

        InputError: no class word, or a learned word without its rows.
        """
        said = lora.metadata
        word = " ".join(class_word.split()) or said.get("apt_class_word", "")
        if not word:
            raise InputError(
                "class_word is empty and the LoRA does not say it: say what its subject is, for example dog or woman."
            )
        words = " ".join(trigger.split()) or said.get("modelspec.trigger_phrase", "") or word
        if words.lower().startswith(LEARNED) and embedding is None:
            raise InputError(
                f"The trigger is {words}, but that learned word was not found: put its embedding file beside the LoRA "
                "or where embeddings are kept, or give a trigger in plain words."
            )
        if LEARNED in words.lower() and len(words.split()) > 1:
            raise InputError(f"The trigger is {words!r}: give the embedding alone, or plain words.")
        return Subject(word, words, embedding if words.lower().startswith(LEARNED) else None)

    def conditioner(self, components: Components) -> Conditioner:
        """Reads texts as the model's encoders do at this moment. InputError: the embedding is another model's."""
        identifier = None if self.embedding is None else self._identifier(components, self.embedding)
        name = self.trigger.removeprefix(LEARNED)
        return Conditioner(
            components.text_encoders, identifier, class_word=self.class_word, name=name, trigger=self.trigger
        )

    def caption(self, text: str) -> str:
        """With `{subject}` for the trigger or the first class word; a text that has neither stays as it is."""
        name = self.trigger.removeprefix(LEARNED)
        marked = mark_subject(" ".join(text.split()), name=name, class_word=self.class_word)
        return marked if SUBJECT in marked or not self.class_word else _first_word(marked, self.class_word)

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
            if found is None or found.ndim != 2 or found.shape[1] != width:
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


def _first_word(text: str, word: str) -> str:
    """`{subject}` for the first whole `word` in any case."""
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    return re.sub(rf"(?<![\w-]){pattern}(?![\w-])", lambda _: SUBJECT, text, count=1, flags=re.IGNORECASE)

"""A learned word's rows: read from its file and put on a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..families.components import Components
from ..text.identifier import Identifier
from ..text.tokens import Vocabulary


def checked_rows(words: str, embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables in an embedding file. InputError: there is none, or training broke one."""
    rows = {key: tensor for key, tensor in embedding.items() if tensor.ndim == 2 and tensor.is_floating_point()}
    if not any(len(table) for table in rows.values()):
        raise InputError(f"The file of {words} holds no learned word: give its embedding as .safetensors.")
    if not all(bool(table.float().isfinite().all()) for table in rows.values()):
        raise InputError(f"The file of {words} holds values that are no numbers: take an earlier snapshot's.")
    return rows


def identifier_of(embedding: Mapping[str, Tensor], components: Components, trigger: str, class_word: str) -> Identifier:
    """The word's rows on a model. InputError: they are for another model."""
    rows: list[Tensor] = []
    ids: list[list[int]] = []
    keys: list[str] = []
    for encoder in components.text_encoders:
        key, width = encoder.embedding_key, encoder.table.shape[1]
        found = embedding.get(key)
        if found is None or not len(found) or found.shape[1] != width:
            raise InputError(
                f"The embedding of {trigger} has no rows for this model's {key} ({width} wide): give the one "
                "that was trained with the LoRA."
            )
        place = Vocabulary.of(encoder).ids(class_word) or [0]
        rows.append(found.to(torch.float32))
        ids.append([place[0]] * len(found))
        keys.append(key)
    device = components.text_encoders[0].table.device
    return Identifier(rows, ids, keys, class_word).to(device)

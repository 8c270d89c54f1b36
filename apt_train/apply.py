"""Putting a trained LoRA and its identifier back on a model: for the demo, comparisons and the nodes.

In: kohya names -> adapter, embedding rows -> conditioner. Not in: reading files (safetensors does that).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor

from .adapter import adapter_parameters, add_adapter, load_adapter_state, remove_adapter
from .components import Components
from .conditioning import Conditioner
from .errors import InputError
from .export import adapter_from_kohya
from .identifier import Identifier


@contextlib.contextmanager
def personalized(
    components: Components,
    lora: Mapping[str, Tensor],
    embeddings: Mapping[str, Tensor] | None,
    *,
    name: str,
    class_word: str,
    init_word: str = "",
) -> Iterator[Conditioner]:
    """Inside the block the UNet carries the LoRA; the conditioner reads `{subject}` as the trained identifier.

    Args:
        lora: in kohya names, as in `TrainResult.lora`.
        embeddings: as in `TrainResult.embeddings`; None: the plain words `name class_word` (word mode).

    Raises:
        InputError: the LoRA does not fit this model.
    """
    state, rank, alpha = adapter_from_kohya(lora, components.unet, components.family)
    targets = "attention+ff" if any(".ff." in key for key in state) else "attention"
    add_adapter(components.unet, rank=rank, alpha=alpha, targets=targets)
    try:
        if adapter_parameters(components.unet).keys() != state.keys():
            raise InputError("The LoRA does not sit on the layers that APT Train adapts: use one it wrote.")
        load_adapter_state(components.unet, state)
        identifier = _identifier(components, embeddings, init_word or class_word)
        yield Conditioner(components.text_encoders, identifier, class_word=class_word, name=name)
    finally:
        remove_adapter(components.unet)


def _identifier(components: Components, embeddings: Mapping[str, Tensor] | None, init_word: str) -> Identifier | None:
    """The init word's identifier with the trained rows in it: its tokens hold the places."""
    if embeddings is None:
        return None
    identifier = Identifier.from_init_word(components.text_encoders, init_word)
    for key, row in zip(identifier.keys, identifier.rows, strict=True):
        if row.shape != embeddings[key].shape:
            raise InputError(
                f"The embedding holds {len(embeddings[key])} rows of {key}, but {init_word!r} has {len(row)} tokens."
            )
        row.data.copy_(embeddings[key])
    return identifier

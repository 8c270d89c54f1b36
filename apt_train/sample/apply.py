"""Puts a trained LoRA and its identifier back on a model: for the demo, comparisons and the nodes.

In: kohya names -> adapter, embedding rows -> conditioner. Not in: reading files (safetensors does that).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

from torch import Tensor

from ..adapter import Adapter, adapter_of
from ..config import TrainConfig
from ..errors import InputError
from ..families.components import Components
from ..families.file_words import config_of
from ..run.export import lora_from_kohya
from ..text.conditioning import Conditioner
from ..text.identifier import Identifier
from ..wording import counted


@contextlib.contextmanager
def personalized(
    components: Components, lora: Mapping[str, Tensor], embeddings: Mapping[str, Tensor] | None, config: TrainConfig
) -> Generator[tuple[Conditioner, Adapter]]:
    """Inside the block the UNet has the LoRA attached, and the conditioner reads `{subject}` as what was trained.

    Args:
        lora: in kohya names, as in `TrainResult.lora`.
        embeddings: as in `TrainResult.embeddings`; None: the plain words `name class_word` (word mode).
        config: of the run.

    Raises:
        InputError: the LoRA or the embedding does not fit this model.
    """
    unet, family, settings = components.unet, components.family, config.adapter
    adapter = adapter_of(unet, settings, family, components.levels if config.method == "tlora" else None)
    try:
        adapter.load(lora_from_kohya(lora, adapter.state(), settings.effective_alpha, family, config_of(unet)))
        encoders, identifier = components.text_encoders, None
        if embeddings is not None:
            identifier = Identifier.from_rows(encoders, embeddings, config.trigger, config.resolved_init_word)
            _check_count(identifier, Identifier.from_init_word(encoders, config.resolved_init_word))
        yield Conditioner(encoders, identifier, class_word=config.class_word, name=config.name), adapter
    finally:
        adapter.remove()


def _check_count(learned: Identifier, started: Identifier) -> None:
    """InputError: the run's init word has another number of tokens, so these rows are of another run."""
    for key, rows, at_first in zip(learned.keys, learned.rows, started.rows, strict=True):
        if len(rows) != len(at_first):
            raise InputError(
                f"The embedding holds {counted(len(rows), 'row')} of {key}, but {started.init_word!r} has "
                f"{counted(len(at_first), 'token')}."
            )

"""The learned identifier: our own embedding rows in place of a word's, without touching any tokenizer.

In: the rows, their norm, and the hook that puts them among a text encoder's token embeddings. Not in: their position
in a caption (`tokens.py`), the file format (`export.py`).

Adding a token to a tokenizer would split longer words around it and, if the configuration's `eos_token_id` is 2, move
the pooled position. So the init word's own ids serve as placeholders, and only the looked-up rows are replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..families.components import TextEncoder, token_embedding
from .tokens import Vocabulary


class Identifier(nn.Module):
    """Learned rows: one float32 Parameter (n, width) per text encoder, where n is the init word's token count.

    Initialised from a class word, with the norm restored at every step: DCO's recipe (arXiv 2402.12004).
    `ids`: per encoder, the vocabulary ids that serve as placeholders for the rows.
    """

    def __init__(
        self, rows: Sequence[Tensor], ids: Sequence[Sequence[int]], keys: Sequence[str], init_word: str
    ) -> None:
        super().__init__()
        assert len(set(keys)) == len(keys) == len(rows) == len(ids), (keys, len(rows), len(ids))
        self.rows = nn.ParameterList(nn.Parameter(row.detach().float().clone()) for row in rows)
        self.ids = [list(one) for one in ids]
        self.keys = list(keys)
        self.init_word = init_word
        for i, row in enumerate(self.rows):
            self.register_buffer(f"norm_{i}", row.detach().norm(dim=-1, keepdim=True), persistent=False)

    @staticmethod
    def from_init_word(encoders: list[TextEncoder], init_word: str) -> Identifier:
        """Rows initialised from the init word; several words, or a word of several tokens, give several rows.

        InputError: a tokenizer finds no token in it.
        """
        ids = [Vocabulary.of(encoder).ids(f" {init_word}") for encoder in encoders]
        if not all(ids):
            raise InputError(f"init_word {init_word!r} has no token in the model's vocabulary: choose another.")
        tables = [encoder.table for encoder in encoders]
        rows = [table[torch.tensor(own, device=table.device)] for table, own in zip(tables, ids, strict=True)]
        return Identifier(rows, ids, [encoder.embedding_key for encoder in encoders], init_word)

    @staticmethod
    def from_rows(encoders: list[TextEncoder], rows: Mapping[str, Tensor], trigger: str, word: str) -> Identifier:
        """An identifier learned before, from its rows by embedding key; a token of the word is their placeholder.

        InputError, which calls it by its trigger: the rows are for another model.
        """
        keys = [encoder.embedding_key for encoder in encoders]
        for key, width in zip(keys, [encoder.table.shape[1] for encoder in encoders], strict=True):
            if key not in rows or not len(rows[key]) or rows[key].shape[1] != width:
                raise InputError(
                    f"The embedding of {trigger} has no rows for this model's {key} ({width} wide): give the one "
                    "that was trained with the LoRA."
                )
        places = [(Vocabulary.of(encoder).ids(word) or [0])[0] for encoder in encoders]
        ids = [[place] * len(rows[key]) for key, place in zip(keys, places, strict=True)]
        return Identifier([rows[key] for key in keys], ids, keys, word).to(encoders[0].table.device)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Scale every row back to its initial norm; an untrained row keeps its exact bits."""
        for i, row in enumerate(self.rows):
            start = self.get_buffer(f"norm_{i}")
            norm = row.norm(dim=-1, keepdim=True)
            row.mul_(torch.where(norm > 0, start / norm, torch.ones_like(norm)))

    def embeddings(self) -> dict[str, Tensor]:
        """Rows by embedding key, `{"clip_l": (n, 768), "clip_g": (n, 1280)}`, as float32 copies on the CPU."""
        return {
            key: row.detach().to("cpu", torch.float32, copy=True) for key, row in zip(self.keys, self.rows, strict=True)
        }


@contextlib.contextmanager
def rows_in_place(model: nn.Module, rows: Tensor, places: Tensor) -> Generator[None]:
    """Inside the block the model reads `rows` (n, width) at the positions given by `places`.

    `places`: int64 in the shape of the ids, the row's number at each position, -1 for the vocabulary's own embedding.
    A hook on the table keeps the gradient, because transformers 5 refuses `inputs_embeds` for CLIP.
    """

    seen: list[torch.Size] = []

    def replace(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.shape)
        ours = F.embedding(places.clamp(min=0), rows.to(output.device, output.dtype))
        return torch.where((places >= 0)[..., None], ours, output)

    with token_embedding(model).register_forward_hook(replace):
        yield
    assert seen, "the text encoder reads another table than the one it names"  # as transformers' T5EncoderModel does

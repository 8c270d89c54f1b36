"""Encodes captions into what the UNet reads: hidden states, the pooled vector, and a column for every position.

In: encoding with one or two CLIP text encoders, chunk by chunk, in the tuned and the prior version; the cache. Not in:
reading captions (`captions.py`, `tokens.py`), the learned rows (`identifier.py`), SDXL's size ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils import checkpoint

from ..config import TrainConfig
from ..families.components import TextEncoder, token_embedding
from ..families.swapped import on_loan, pin, sent
from ..names import plain_trigger
from .captions import mark_embedding
from .identifier import Identifier, rows_in_place
from .tokens import Chunk, TokenLayout, Vocabulary, lay_out


@dataclass
class Conditioning:
    """A batch of encoded captions. L: chunks x the tokenizer's length, or the longest of texts that are not padded.

    `columns` maps a position to its column of the attention map (see "Attention alignment" in docs/method.md). Sample
    i uses the columns 0 to len(labels[i]) - 1, the same ones in its tuned and its prior version.
    """

    hidden: Tensor  # (N, L, D), in the encoders' dtype; D is summed over the encoders
    pooled: Tensor | None  # (N, P), SDXL only
    columns: Tensor  # int64 (N, L)
    num_columns: int  # the maximum over the samples
    labels: list[list[str]]  # one per column
    mask: Tensor | None = None  # as `TextInput.mask`


class Conditioner:
    """Encodes captions that hold `{subject}` (or ComfyUI's `embedding:NAME`) any number of times, including none.

    In the tuned version the subject is the learned identifier's rows, or without an identifier (word mode) the plain
    text `NAME class_word`. In the prior version it is the class word. Chunks are encoded one by one, so a caption's
    embedding does not depend on its batch. Those without learned rows are encoded once and cached. Freezes the
    encoders.
    """

    def __init__(
        self,
        encoders: list[TextEncoder],
        identifier: Identifier | None,
        *,
        class_word: str,
        name: str,
        trigger: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`trigger`: the subject's words in the tuned version of word mode; None: `NAME class_word`.

        `device`: where `encode` puts its result; None: where the encoders are.
        """
        self.encoders = encoders
        self.identifier = identifier
        self.class_word = class_word
        self.name = name
        self._trigger = trigger or plain_trigger(name, class_word)
        self._vocabularies = [Vocabulary.of(encoder) for encoder in encoders]
        self._device = device
        self.is_aside = False  # whether the encoders wait in main memory and visit the device, one at a time, to work
        self._layouts: dict[str, TokenLayout] = {}
        self._cache: dict[tuple[tuple[tuple[int, ...], int], ...], tuple[Tensor, Tensor | None]] = {}
        for encoder in encoders:
            encoder.model.requires_grad_(False).eval()

    @staticmethod
    def of(config: TrainConfig, encoders: list[TextEncoder], device: torch.device) -> Conditioner:
        """A run's on `device`, with its untrained identifier; in word mode without one."""
        identifier = None
        if config.identifier_mode == "learned":
            identifier = Identifier.from_init_word(encoders, config.resolved_init_word).to(device)
        return Conditioner(encoders, identifier, class_word=config.class_word, name=config.name, device=device)

    def encode(self, captions: list[str], *, tuned: bool, chunks: int = 1) -> Conditioning:
        """Encode a batch; gradient flows only to the identifier's rows, and only where grad is enabled.

        All captions get the same number of chunks: the most any of them has in either version, at least `chunks`.
        """
        assert captions, "no captions"
        layouts = [self.layout(caption) for caption in captions]
        count = max(chunks, self.num_chunks(captions))
        encoded = self._encode_all(layouts, tuned, count)
        pooled = [vector for _, vector in encoded if vector is not None]
        rows = [torch.tensor(layout.columns(tuned=tuned, num_chunks=count)) for layout in layouts]
        hidden, mask = side_by_side([hidden for hidden, _ in encoded])
        return Conditioning(
            hidden=hidden,
            pooled=torch.stack(pooled) if pooled else None,
            columns=pad_sequence([sent(row, self.device) for row in rows], batch_first=True),
            num_columns=max(len(layout.labels) for layout in layouts),
            labels=[layout.labels for layout in layouts],
            mask=mask,
        )

    def put_aside(self) -> None:
        """From now on the encoders wait in main memory: see `is_aside`."""
        self._device = self.device
        for encoder in self.encoders:
            encoder.model.to("cpu")
            pin((*encoder.model.parameters(), *encoder.model.buffers()), self._device)
        self.is_aside = True

    def precompute(self, captions: list[str]) -> None:
        """Encode and cache everything that training does not change.

        In word mode this is everything: the encoders may leave the device afterwards.
        """
        for caption in captions:
            layout = self.layout(caption)
            for parts in (*layout.tuned, *layout.prior, layout.filler):
                if not _learned(parts):
                    self._cached(parts)

    def warnings(self) -> list[str]:
        """Warnings about words that will train badly; nothing is refused."""
        found: list[str] = []
        if self.identifier is None and self.name.lower() in self.class_word.lower().split():
            found.append(
                f"The identifier {self.name!r} is a word of the class {self.class_word!r}. "
                "The model will change that word everywhere: choose a name that it does not know."
            )
        text = self.name if self.identifier is None else self.identifier.init_word
        for word in dict.fromkeys(self._vocabularies[0].unknown_words(f"{self.class_word} {text}")):
            found.append(f"The model does not know the word {word!r} and reads it as any other unknown word.")
        return found

    def layout(self, caption: str) -> TokenLayout:
        """The tokens, chunks and columns of a caption."""
        if caption not in self._layouts:
            text = mark_embedding(caption, name=self.name)
            rows = self.identifier and self.identifier.ids
            self._layouts[caption] = lay_out(text, self._vocabularies, self._trigger, self.class_word, rows)
        return self._layouts[caption]

    def num_chunks(self, captions: list[str]) -> int:
        """The number of chunks that `encode` gives these captions."""
        return max(self.layout(caption).num_chunks for caption in captions)

    @property
    def device(self) -> torch.device:
        """Where `encode` puts its result."""
        return self._device or token_embedding(self.encoders[0].model).weight.device

    def _encode_all(self, layouts: list[TokenLayout], tuned: bool, count: int) -> list[tuple[Tensor, Tensor | None]]:
        """Per caption: hidden (L, D) and the first chunk's pooled vector (P,) or None."""
        chunked = [layout.chunks(tuned=tuned, num_chunks=count) for layout in layouts]
        fresh = iter(self._run([parts for chunks in chunked for parts in chunks if _learned(parts)]))
        encoded = [
            [_move(next(fresh), self.device) if _learned(parts) else self._cached(parts) for parts in chunks]
            for chunks in chunked
        ]
        return [(torch.cat([hidden for hidden, _ in chunks]), chunks[0][1]) for chunks in encoded]

    def _cached(self, parts: tuple[Chunk, ...]) -> tuple[Tensor, Tensor | None]:
        key = tuple((chunk.ids, len(chunk.columns)) for chunk in parts)
        if key not in self._cache:
            with torch.no_grad():
                self._cache[key] = self._run([parts])[0]
        self._cache[key] = _move(self._cache[key], self.device)
        return self._cache[key]

    def _run(self, many: list[tuple[Chunk, ...]]) -> list[tuple[Tensor, Tensor | None]]:
        """Chunks, all with learned rows or all without, through every encoder: joined hidden states, pooled vector."""
        if not many:
            return []
        by_encoder = [self._through(i, [parts[i] for parts in many]) for i in range(len(self.encoders))]
        return [_joined(one, self.encoders) for one in zip(*by_encoder, strict=True)]

    def _through(self, number: int, chunks: list[Chunk]) -> list[tuple[Tensor, Tensor | None]]:
        """All chunks through one encoder, one after another.

        An encoder that is lent out moves only once for all. A backward pass encodes again, on a loan of its own, and
        nothing is kept in between.
        """
        encoder = self.encoders[number]
        rows = self.identifier.rows[number] if self.identifier is not None and _learned(chunks) else None

        def encode(rows: Tensor | None) -> list[Tensor | None]:
            with on_loan(encoder.model, self.device) if self.is_aside else contextlib.nullcontext():
                return [part for chunk in chunks for part in encode_chunk(encoder, chunk, rows)]

        read = partial(cast("Any", checkpoint.checkpoint), encode, use_reentrant=False) if self.is_aside else encode
        flat = cast("list[Any]", read(rows))
        return list(zip(flat[::2], flat[1::2], strict=True))


def side_by_side(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Hidden states (length, D) as a batch (N, L, D), zeros behind the shorter ones, with the mask of `TextInput`."""
    mask = None
    if len({len(text) for text in texts}) > 1:
        mask = pad_sequence([torch.ones_like(text[:, 0], dtype=torch.bool) for text in texts], batch_first=True)
    return pad_sequence(list(texts), batch_first=True), mask


def _joined(
    encoded: Sequence[tuple[Tensor, Tensor | None]], encoders: Sequence[TextEncoder]
) -> tuple[Tensor, Tensor | None]:
    """One chunk's hidden states and pooled vectors from all encoders, joined as `TextEncoder.sequence` says."""
    device = encoded[0][0].device
    sequences: dict[int, list[Tensor]] = {}
    for (hidden, _), encoder in zip(encoded, encoders, strict=True):
        if encoder.sequence is not None:
            sequences.setdefault(encoder.sequence, []).append(hidden.to(device))
    joined = [torch.cat(parts, dim=-1) for parts in sequences.values()]
    if len(joined) > 1:
        widest = max(hidden.shape[-1] for hidden in joined)
        joined = [torch.cat([nn.functional.pad(hidden, (0, widest - hidden.shape[-1])) for hidden in joined])]
    pooled = [vector.to(device) for _, vector in encoded if vector is not None]
    return joined[0], torch.cat(pooled, dim=-1) if len(pooled) > 1 else next(iter(pooled), None)


def _learned(chunks: Sequence[Chunk]) -> bool:
    """Whether any of them holds learned rows, even if the other encoders' chunks of the same number do not."""
    return any(max(chunk.rows) >= 0 for chunk in chunks)


def encode_chunk(encoder: TextEncoder, chunk: Chunk, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One chunk through one encoder: hidden (positions kept, width) and, if it has one, the pooled vector (P,).

    The pooled vector is read at the chunk's own end token. transformers would take the highest id or the first end id,
    depending on the configuration. There is no attention mask: Stable Diffusion's encoders attend
    to their padding, and others get none.
    """
    device = token_embedding(encoder.model).weight.device
    ids = sent(torch.tensor([chunk.ids]), device)
    placed = contextlib.nullcontext()
    if rows is not None:
        placed = rows_in_place(encoder.model, rows, sent(torch.tensor([chunk.rows]), device))
    with placed:
        output = encoder.model(input_ids=ids, output_hidden_states=True, return_dict=True)
    pooled = _project(encoder.model, output.last_hidden_state[0, chunk.end]) if encoder.pooled else None
    return _layer(encoder, output)[0, len(chunk.ids) - len(chunk.columns) :], pooled


def _layer(encoder: TextEncoder, output: Any) -> Tensor:
    """The hidden states that the UNet reads, (1, L, width)."""
    if encoder.layer == -1 and encoder.final_norm:
        return output.last_hidden_state
    states = output.hidden_states[encoder.layer]  # all of them precede the final norm, even the last
    if not encoder.final_norm:
        return states
    # transformers 5 has no `text_model` inside a plain CLIPTextModel
    tower: Any = getattr(encoder.model, "text_model", encoder.model)
    return tower.final_layer_norm(states)


def _project(model: nn.Module, state: Tensor) -> Tensor:
    projection: Any = getattr(model, "text_projection", None)
    return state if projection is None else projection(state)


def _move(encoded: tuple[Tensor, Tensor | None], device: torch.device) -> tuple[Tensor, Tensor | None]:
    hidden, pooled = encoded
    return hidden.to(device), None if pooled is None else pooled.to(device)

"""The learned rows: they start as the init word's, keep their norm, and alone receive gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apt_train.errors import InputError
from apt_train.families.components import Components, TextEncoder
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier, rows_in_place, token_embedding
from tests.tiny import tiny_components

KINDS = ["sd15", "sdxl"]


def conditioner(parts: Components, init_word: str = "toy", class_word: str = "toy") -> Conditioner:
    rows = Identifier.from_init_word(parts.text_encoders, init_word)
    return Conditioner(parts.text_encoders, rows, class_word=class_word, name="zwx")


def use_legacy_end_id(parts: Components) -> None:
    """As in SDXL's published configurations: transformers then pools at the highest id."""
    for encoder in parts.text_encoders:
        model: Any = encoder.model
        model.config.eos_token_id = 2
        for module in model.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("init_word", ["toy", "teddy bear", "dog's"])  # 1, 2 and (one word) 3 tokens
def test_untrained_rows_read_as_the_init_word_to_the_bit(kind: str, legacy: bool, init_word: str) -> None:
    parts = tiny_components(kind)
    if legacy:
        use_legacy_end_id(parts)
    one = conditioner(parts, init_word)
    for caption in ("a photo of {subject} on grass", "{subject}", "{subject}'s hat and {subject}"):
        tuned = one.encode([caption], tuned=True)
        plain = one.encode([caption.replace("{subject}", init_word)], tuned=False)
        assert torch.equal(tuned.hidden, plain.hidden)
        if kind == "sdxl":
            assert tuned.pooled is not None and plain.pooled is not None
            assert torch.equal(tuned.pooled, plain.pooled)
        else:
            assert tuned.pooled is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_gradient_reaches_the_rows_and_nothing_else(kind: str, legacy: bool) -> None:
    parts = tiny_components(kind)
    for encoder in parts.text_encoders:
        encoder.model.requires_grad_(True)  # whatever the loader left on
    if legacy:
        use_legacy_end_id(parts)
    one = conditioner(parts, "teddy bear")
    assert one.identifier is not None
    out = one.encode(["a photo of {subject} on grass", "{subject}"], tuned=True)
    out.hidden.square().sum().backward()
    for row in one.identifier.rows:
        assert row.grad is not None and bool((row.grad.abs().sum(dim=1) > 0).all())
    for encoder in parts.text_encoders:
        assert all(weight.grad is None for weight in encoder.model.parameters())


def test_the_pooled_vector_carries_gradient_to_its_own_encoder() -> None:
    one = conditioner(tiny_components("sdxl"))
    assert one.identifier is not None
    pooled = one.encode(["a photo of {subject}"], tuned=True).pooled
    assert pooled is not None
    pooled.sum().backward()
    assert one.identifier.rows[0].grad is None
    grad = one.identifier.rows[1].grad
    assert grad is not None and float(grad.norm()) > 0


def test_a_changed_row_changes_the_tuned_version_alone() -> None:
    one = conditioner(tiny_components("sd15"))
    assert one.identifier is not None
    captions = ["a photo of {subject} on grass", "a photo of dog"]
    before = one.encode(captions, tuned=True).hidden, one.encode(captions, tuned=False).hidden
    with torch.no_grad():
        one.identifier.rows[0].add_(1.0)
    after = one.encode(captions, tuned=True).hidden, one.encode(captions, tuned=False).hidden
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0][1], after[0][1])  # no subject in it
    # causal attention: start, "a", "photo", "of" come before the subject
    assert torch.equal(before[0][0, :4], after[0][0, :4]) and not torch.equal(before[0][0, 4], after[0][0, 4])


def test_the_tokenizer_stays_as_it_is() -> None:
    parts = tiny_components("sd15")
    tokenizer = parts.text_encoders[0].tokenizer
    before = len(tokenizer), tokenizer("submarine sub zwx").input_ids
    one = conditioner(parts, "sub")
    one.encode(["a {subject} submarine"], tuned=True)
    assert (len(tokenizer), tokenizer("submarine sub zwx").input_ids) == before
    assert not token_embedding(parts.text_encoders[0].model)._forward_hooks


def test_renormalize_keeps_direction_and_first_norm() -> None:
    rows = Identifier.from_init_word(tiny_components("sdxl").text_encoders, "teddy bear")
    start = [row.detach().clone() for row in rows.rows]
    rows.renormalize()
    assert all(torch.equal(row, old) for row, old in zip(rows.rows, start, strict=True))
    with torch.no_grad():
        rows.rows[0].mul_(3.0)
        rows.rows[1][0] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    moved = rows.rows[1].detach().clone()
    rows.renormalize()
    torch.testing.assert_close(rows.rows[0].detach(), start[0])
    torch.testing.assert_close(rows.rows[1].detach().norm(dim=1), start[1].norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(rows.rows[1].detach(), moved), torch.ones(2))


def test_a_row_of_zeros_stays_finite() -> None:
    rows = Identifier([torch.zeros(1, 4)], [[0]], ["clip_l"], "nothing")
    rows.renormalize()
    assert bool((rows.rows[0] == 0).all())


def test_the_file_holds_float32_rows_of_every_encoder() -> None:
    parts = tiny_components("sdxl")
    for encoder in parts.text_encoders:
        encoder.model.to(torch.bfloat16)
    rows = Identifier.from_init_word(parts.text_encoders, "teddy bear")
    found = rows.embeddings()
    assert {key: (tuple(value.shape), value.dtype) for key, value in found.items()} == {
        "clip_l": ((2, 32), torch.float32), "clip_g": ((2, 32), torch.float32)
    }  # fmt: skip
    with torch.no_grad():
        rows.rows[0].zero_()
    assert bool((found["clip_l"] != 0).any()), "a copy, not a view"
    assert list(rows.state_dict()) == ["rows.0", "rows.1"]


def test_rows_work_under_a_half_precision_encoder() -> None:
    parts = tiny_components("sd15")
    parts.text_encoders[0].model.to(torch.bfloat16)
    one = conditioner(parts)
    out = one.encode(["a photo of {subject}"], tuned=True)
    assert out.hidden.dtype == torch.bfloat16
    assert torch.equal(out.hidden, one.encode(["a photo of {subject}"], tuned=False).hidden)
    out.hidden.float().sum().backward()
    assert one.identifier is not None
    assert one.identifier.rows[0].dtype == torch.float32 and one.identifier.rows[0].grad is not None


def test_the_hook_leaves_when_the_encoder_fails() -> None:
    encoder: TextEncoder = tiny_components("sd15").text_encoders[0]
    with (
        pytest.raises(RuntimeError),
        rows_in_place(encoder.model, torch.zeros(1, 32), torch.zeros(1, 1).long()),
    ):
        raise RuntimeError
    assert not token_embedding(encoder.model)._forward_hooks


def test_an_init_word_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="init_word"):
        Identifier.from_init_word(tiny_components("sd15").text_encoders, "  ")

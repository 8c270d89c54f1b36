"""Captions to embeddings: columns by hand, chunks as the host cuts them, agreement with transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from apt_train.errors import InputError
from apt_train.families.components import Components, TextEncoder
from apt_train.text.conditioning import Conditioner, Conditioning
from apt_train.text.identifier import Identifier
from apt_train.text.tokens import Token, pack
from tests.tiny import tiny_components, tiny_text_encoder, tiny_tokenizer

WORD = tiny_tokenizer().get_vocab()
TINY = tiny_components()


def learned(parts: Components, init_word: str = "toy", class_word: str = "toy") -> Conditioner:
    rows = Identifier.from_init_word(parts.text_encoders, init_word)
    return Conditioner(parts.text_encoders, rows, class_word=class_word, name="zwx")


def plain(parts: Components, class_word: str = "toy", name: str = "zwx") -> Conditioner:
    return Conditioner(parts.text_encoders, None, class_word=class_word, name=name)


def ids(conditioner: Conditioner, caption: str, *, tuned: bool, encoder: int = 0) -> list[list[int]]:
    layout = conditioner.layout(caption)
    return [list(chunk[encoder].ids) for chunk in (layout.tuned if tuned else layout.prior)]


def counts(conditioning: Conditioning, sample: int = 0) -> list[int]:
    """Positions per column."""
    return torch.bincount(conditioning.columns[sample], minlength=conditioning.num_columns).tolist()


# Columns


def test_columns_by_hand_of_a_two_token_class_and_a_one_token_identifier() -> None:
    one = learned(tiny_components(), "toy", "teddy bear")
    caption = "a {subject} on grass"
    tuned, prior = one.encode([caption], tuned=True), one.encode([caption], tuned=False)
    labels = ["<start>", "a", "<subject>", "on", "grass", "<end>", "<rest>"]
    assert tuned.labels == prior.labels == [labels]
    assert tuned.num_columns == prior.num_columns == 7
    assert tuned.columns.tolist() == [[0, 1, 2, 3, 4, 5, *[6] * 10]]
    assert prior.columns.tolist() == [[0, 1, 2, 2, 3, 4, 5, *[6] * 9]]
    assert tuned.columns.dtype == torch.int64
    words = [WORD[w] for w in ("<bos>", "a", "teddy", "bear", "on", "grass", "<eos>")]
    assert ids(one, caption, tuned=False) == [words + [WORD["<pad>"]] * 9]


def test_every_occurrence_has_a_column_and_may_stand_inside_a_word() -> None:
    one = learned(tiny_components(), "teddy bear", "toy")
    out = one.encode(["{subject}'s hat, {subject}"], tuned=True)
    assert out.labels == [["<start>", "<subject>", "'", "s", "hat", ",", "<subject>", "<end>", "<rest>"]]
    assert out.columns[0, :11].tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8]


def test_word_mode_joins_name_and_class_in_one_column() -> None:
    one = plain(tiny_components(), "teddy bear")
    caption = "a photo of {subject}"
    assert ids(one, caption, tuned=True)[0][:8] == [
        WORD[w] for w in ("<bos>", "a", "photo", "of", "zwx", "teddy", "bear", "<eos>")
    ]
    assert one.encode([caption], tuned=True).columns[0, :8].tolist() == [0, 1, 2, 3, 4, 4, 4, 5]
    assert one.encode([caption], tuned=False).columns[0, :8].tolist() == [0, 1, 2, 3, 4, 4, 5, 6]


def test_unknown_words_keep_their_label_and_column() -> None:
    one = learned(tiny_components())
    out = one.encode(["a flibber {subject}"], tuned=True)
    assert out.labels[0] == ["<start>", "a", "flibber", "<subject>", "<end>", "<rest>"]
    assert ids(one, "a flibber {subject}", tuned=True)[0][2] == WORD["<unk>"]


def test_a_batch_has_the_columns_of_its_longest_caption() -> None:
    out = learned(tiny_components()).encode(["{subject}", "a photo of {subject} on sand"], tuned=True)
    assert out.num_columns == 9 and [len(labels) for labels in out.labels] == [4, 9]
    assert counts(out, 0) == [1, 1, 1, 13, 0, 0, 0, 0, 0]
    assert counts(out, 1) == [1, 1, 1, 1, 1, 1, 1, 1, 8]


def test_each_sequence_has_columns_of_its_own() -> None:
    (first,) = tiny_components().text_encoders
    encoders = [replace(first, sequence=number) for number in (0, 1)]
    out = Conditioner(encoders, None, class_word="toy", name="zwx").encode(["a {subject}"], tuned=True)
    assert out.labels == [["<start>", "a", "<subject>", "<end>", "<rest>"] * 2]
    half = out.columns.shape[1] // 2
    assert out.columns[0, :4].tolist() == [0, 1, 2, 2]
    assert torch.equal(out.columns[:, half:], out.columns[:, :half] + 5)


SOME_WORDS = ["a", "photo", "red", "{subject}", "{subject}'s", "hat,", "nowhere"]


@given(
    st.lists(st.sampled_from(SOME_WORDS), max_size=40),
    st.sampled_from(["toy", "teddy bear", "big red dog's hat"]),
    st.booleans(),
)
def test_both_versions_share_their_columns(words: list[str], class_word: str, word_mode: bool) -> None:
    one = plain(TINY, class_word) if word_mode else learned(TINY, "teddy bear", class_word)
    layout = one.layout(" ".join(words))
    rest = len(layout.labels) - 1
    for tuned in (True, False):
        columns = layout.columns(tuned=tuned, num_chunks=layout.num_chunks)
        assert len(columns) == 16 * layout.num_chunks
        assert {*columns, rest} == set(range(len(layout.labels)))
    # Outside the subject, both read the same ids in the same columns.
    apart = {rest} | {column for column, label in enumerate(layout.labels) if label == "<subject>"}
    tuned_pairs, prior_pairs = (
        [
            (column, id)
            for chunk in chunks
            for column, id in zip(chunk[0].columns, chunk[0].ids, strict=True)
            if column not in apart
        ]
        for chunks in (layout.tuned, layout.prior)
    )
    # The first chunk may end earlier in one of them; within the text the order is the caption's.
    assert sorted(tuned_pairs) == sorted(prior_pairs)
    for pairs in (tuned_pairs, prior_pairs):
        text = [column for column, _ in pairs if column < rest - 1]
        assert text == sorted(text)


# Chunks


def group(start: int, length: int) -> list[Token]:
    return [Token(start + i, 0) for i in range(length)]


def lengths(*groups: int, room: int = 75) -> list[int]:
    return [len(chunk) for chunk in pack([group(0, n) for n in groups], room)]


def test_chunks_are_cut_as_the_host_cuts_them() -> None:
    assert lengths() == lengths(0) == [0]
    assert lengths(75) == [75]
    assert lengths(76) == [75, 1]
    assert lengths(70, 7) == [70, 7]  # fewer than 8 tokens stay together
    assert lengths(70, 8) == [75, 3]  # 8 or more fill the chunk first
    assert lengths(74, 1, 3) == [75, 3]
    assert lengths(200) == [75, 75, 50]
    assert lengths(4, 6, room=5) == [5, 5]  # a group that fits no chunk is cut all the same


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_packing_loses_nothing_and_never_overfills(sizes: list[int], room: int) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    chunks = pack([group(s, n) for s, n in zip(starts, sizes, strict=True)], room)
    assert [token.id for chunk in chunks for token in chunk] == list(range(sum(sizes)))
    assert all(len(chunk) <= room for chunk in chunks)
    assert all(chunks) or len(chunks) == 1
    for start, size in zip(starts, sizes, strict=True):
        homes = [i for i, chunk in enumerate(chunks) for token in chunk if start <= token.id < start + size]
        assert size >= 8 or size > room or len(set(homes)) <= 1


def test_both_versions_and_the_batch_get_the_same_number_of_chunks() -> None:
    one = learned(tiny_components(), "teddy bear", "toy")
    caption = "a big red ball with a small blue hat on green grass {subject} and sand"  # 14 words + subject
    short = "a big red ball with a small blue hat on grass and {subject}"  # 12 words: 14 tokens tuned, 13 prior
    assert len(ids(one, caption, tuned=True)) == len(ids(one, caption, tuned=False)) == 2
    edge = short + " !"  # 13 words: 15 tokens tuned (2 chunks), 14 prior (1 chunk)
    assert (len(ids(one, edge, tuned=True)), len(ids(one, edge, tuned=False))) == (2, 1)
    tuned, prior = one.encode([edge], tuned=True), one.encode([edge], tuned=False)
    assert tuned.hidden.shape == prior.hidden.shape == (1, 32, 32)
    assert counts(tuned) == [*[1] * 13, 2, 1, 1, 32 - 17]
    assert counts(prior) == [*[1] * 16, 16]
    assert prior.columns[0, 16:].tolist() == [16] * 16  # the empty chunk is rest
    empty = one.encode([""], tuned=False)
    assert torch.equal(prior.hidden[:, 16:], empty.hidden)
    both = one.encode([edge, "{subject}"], tuned=False)
    assert both.hidden.shape == (2, 32, 32) and torch.equal(both.hidden[1, 16:], empty.hidden[0])
    assert one.num_chunks([edge]) == 2
    assert one.encode([short], tuned=True).hidden.shape[1] == 16
    assert one.encode([""], tuned=False, chunks=3).hidden.shape[1] == 48


def test_each_chunk_is_encoded_alone_and_pooled_from_the_first() -> None:
    parts = tiny_components("sdxl")
    one = learned(parts, "toy")
    words = "a big red ball with a small blue hat on green grass and sand".split()  # 14: one full chunk
    long = one.encode([" ".join([*words, "snow", "park"])], tuned=False)
    first, second = (one.encode([" ".join(part)], tuned=False) for part in (words, ["snow", "park"]))
    assert torch.equal(long.hidden, torch.cat([first.hidden, second.hidden], dim=1))
    assert long.pooled is not None and first.pooled is not None and torch.equal(long.pooled, first.pooled)
    assert long.columns[0, 15] == long.num_columns - 2  # the first chunk's end is <end>
    assert long.columns[0, 16] == long.columns[0, 19] == long.num_columns - 1  # the second one's start and end: rest
    assert long.columns[0, 17:19].tolist() == [15, 16]


def test_rows_are_trained_in_any_chunk() -> None:
    one = learned(tiny_components(), "big red dog's hat and small blue ball on sand", "toy")  # 12 rows
    out = one.encode(["a photo of {subject}"], tuned=True)
    assert counts(out) == [1, 1, 1, 1, 12, 1, 15]
    out.hidden.square().sum().backward()
    assert one.identifier is not None
    grad = one.identifier.rows[0].grad
    assert grad is not None and bool((grad.norm(dim=1) > 0).all())


def test_a_caption_does_not_depend_on_its_batch() -> None:
    one = learned(tiny_components("sdxl"))
    captions = ["a photo of {subject}", "{subject} on grass", "a dog"]
    for tuned in (True, False):
        batch = one.encode(captions, tuned=tuned)
        for i, caption in enumerate(captions):
            alone = one.encode([caption], tuned=tuned)
            assert torch.equal(batch.hidden[i], alone.hidden[0])
            assert batch.pooled is not None and alone.pooled is not None
            assert torch.equal(batch.pooled[i], alone.pooled[0])


# Agreement with transformers


@pytest.mark.parametrize("tuned", [True, False])
def test_a_plain_prompt_reads_as_in_the_libraries(tuned: bool) -> None:
    parts = tiny_components()
    for prompt in ("a photo of dog on grass, red", ""):
        out = learned(parts).encode([prompt], tuned=tuned)
        assert torch.equal(out.hidden, reference(parts.text_encoders[0], prompt).last_hidden_state)
        assert out.pooled is None and not out.hidden.requires_grad


@pytest.mark.parametrize("tuned", [True, False])
def test_sdxl_joins_both_encoders_and_projects_the_second(tuned: bool) -> None:
    parts = tiny_components("sdxl")
    prompt = "a photo of submarine"
    out = learned(parts).encode([prompt], tuned=tuned)
    first, second = (reference(encoder, prompt) for encoder in parts.text_encoders)
    assert torch.equal(out.hidden, torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1))
    assert out.pooled is not None and torch.equal(out.pooled, second.text_embeds)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("final_norm", [True, False])
def test_the_layer_and_its_norm(kind: str, layer: int, final_norm: bool) -> None:
    parts = tiny_components(kind)
    encoder = replace(parts.text_encoders[-1], layer=layer, final_norm=final_norm)
    tower: Any = getattr(encoder.model, "text_model", encoder.model)
    torch.nn.init.normal_(tower.final_layer_norm.bias)  # a fresh norm of normed states would be nearly invisible
    seen: list[torch.Tensor] = []
    handle = tower.encoder.layers[layer].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    out = Conditioner([encoder], None, class_word="toy", name="zwx").encode(["a red dog"], tuned=False)
    handle.remove()
    expected = tower.final_layer_norm(seen[0]) if final_norm else seen[0]
    assert torch.equal(out.hidden, expected)


def reference(encoder: TextEncoder, prompt: str) -> Any:
    """The published pipelines' way: whole prompt, padded to the model's length, no attention mask."""
    batch = encoder.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder.model(batch.input_ids, output_hidden_states=True)


# CLIP's own kind of tokenizer: byte pairs, padding with the end token or with id 0


def clip_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    letters = [*"!',.-abcdefghijklmnopqrstuvwxyz_0123456789"]
    merges = ["s u", "su b</w>", "t o", "to y</w>", "o n</w>"]
    vocab = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": pad, "model_max_length": 16})
    )
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture
def clip_parts(tmp_path: Path) -> list[TextEncoder]:
    tokenizers = [clip_tokenizer(tmp_path / f"t{i}", pad) for i, pad in enumerate(("<|endoftext|>", "!"))]
    torch.manual_seed(0)
    models = [tiny_text_encoder(t, projection=i == 1) for i, t in enumerate(tokenizers)]
    return [
        TextEncoder(models[0], tokenizers[0], layer=-2, final_norm=False),
        TextEncoder(models[1], tokenizers[1], layer=-2, final_norm=False, pooled=True, embedding_key="clip_g"),
    ]


def test_byte_pairs_pad_as_each_tokenizer_does(clip_parts: list[TextEncoder]) -> None:
    one = Conditioner(clip_parts, Identifier.from_init_word(clip_parts, "sub"), class_word="toy", name="zwx")
    caption = "on {subject}, subs"
    vocab = clip_parts[0].tokenizer.get_vocab()
    pieces = ["<|startoftext|>", "on</w>", "sub</w>", ",</w>", "su", "b", "s</w>", "<|endoftext|>"]
    for encoder, pad in enumerate(("<|endoftext|>", "!")):
        assert ids(one, caption, tuned=True, encoder=encoder) == [[vocab[p] for p in pieces] + [vocab[pad]] * 8]
    out = one.encode([caption], tuned=True)
    assert out.labels[0] == ["<start>", "on", "<subject>", ",", "su", "b", "s", "<end>", "<rest>"]
    whole = [reference(encoder, "on sub, subs") for encoder in clip_parts]
    assert torch.equal(out.hidden, torch.cat([one.hidden_states[-2] for one in whole], dim=-1))
    assert out.pooled is not None and torch.equal(out.pooled, whole[1].text_embeds)


def test_byte_pairs_read_word_by_word_as_they_read_a_sentence(clip_parts: list[TextEncoder]) -> None:
    one = Conditioner(clip_parts, None, class_word="toy", name="zwx")
    for text in ("A Toy's sub-on, toy. 12 on", "zwx_1 on  the\nsub!"):
        expected = clip_parts[0].tokenizer(text, add_special_tokens=False).input_ids
        found = [i for chunk in ids(one, text, tuned=False) for i in chunk if i < clip_parts[0].tokenizer.bos_token_id]
        assert found == expected


def test_tokenizers_that_disagree_are_refused(clip_parts: list[TextEncoder]) -> None:
    mixed = [clip_parts[0], tiny_components("sdxl").text_encoders[1]]
    with pytest.raises(InputError, match="tokenizers"):
        Conditioner(mixed, None, class_word="toy", name="zwx").encode(["a dog"], tuned=False)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    encoder = tiny_components().text_encoders[0]
    encoder.tokenizer.eos_token = None
    with pytest.raises(InputError, match="end token"):
        Conditioner([encoder], None, class_word="toy", name="zwx")


def test_a_tokenizer_without_a_length_takes_the_models() -> None:
    encoder = tiny_components().text_encoders[0]
    encoder.tokenizer.model_max_length = int(1e30)
    out = Conditioner([encoder], None, class_word="toy", name="zwx").encode(["a dog"], tuned=False)
    assert out.hidden.shape == (1, 16, 32)


# The two modes, prompts, cache


def test_the_hosts_spelling_in_a_prompt_is_the_subject() -> None:
    one = learned(tiny_components())
    named, braced = (one.encode([text], tuned=True) for text in ("a embedding:zwx on sand", "a {subject} on sand"))
    assert torch.equal(named.hidden, braced.hidden) and named.labels == braced.labels
    assert named.hidden.requires_grad


def test_word_mode_reads_plain_text() -> None:
    parts = tiny_components("sdxl")
    one = plain(parts)
    caption = "a photo of {subject} on grass"
    for tuned, text in ((True, "a photo of zwx toy on grass"), (False, "a photo of toy on grass")):
        out = one.encode([caption], tuned=tuned)
        expected = [reference(encoder, text) for encoder in parts.text_encoders]
        assert torch.equal(out.hidden, torch.cat([e.hidden_states[-2] for e in expected], dim=-1))
        assert not out.hidden.requires_grad


def test_precomputed_captions_need_no_encoder() -> None:
    parts = tiny_components("sdxl")
    one = Conditioner(parts.text_encoders, None, class_word="toy", name="zwx", device=torch.device("cpu"))
    captions = ["a photo of {subject}", "{subject} " + "red " * 20, "a dog"]
    one.precompute(captions)
    for encoder in parts.text_encoders:
        encoder.model.forward = refuse
        encoder.model.to("meta")  # off the device: what was encoded stays where it was
    for tuned in (True, False):
        out = one.encode(captions, tuned=tuned)
        assert out.hidden.shape == (3, 32, 64)
        assert out.hidden.device.type == out.columns.device.type == "cpu"
    with pytest.raises(AssertionError, match="encoded again"):
        one.encode(["a cat and a dog"], tuned=True)


def refuse(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("encoded again")


def test_learned_mode_keeps_the_prior_alone() -> None:
    parts = tiny_components()
    one = learned(parts)
    one.precompute(["a photo of {subject}"])
    parts.text_encoders[0].model.forward = refuse
    one.encode(["a photo of {subject}"], tuned=False)
    with pytest.raises(AssertionError, match="encoded again"):
        one.encode(["a photo of {subject}"], tuned=True)


def test_the_cache_is_safe_from_its_readers() -> None:
    one = plain(tiny_components("sdxl"))
    first = one.encode(["a dog"], tuned=False)
    kept = first.hidden.clone()
    first.hidden.zero_()
    assert first.pooled is not None
    pooled = first.pooled.clone()
    first.pooled.zero_()
    again = one.encode(["a dog"], tuned=False)
    assert torch.equal(again.hidden, kept)
    assert again.pooled is not None and torch.equal(again.pooled, pooled)


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    one = learned(tiny_components())
    with torch.no_grad():
        assert not one.encode(["{subject}"], tuned=True).hidden.requires_grad
    assert one.encode(["{subject}"], tuned=True).hidden.requires_grad
    assert not one.encode(["{subject}"], tuned=False).hidden.requires_grad


def test_warnings_name_the_word_and_the_reason() -> None:
    parts = tiny_components()
    assert plain(parts, "teddy bear", "zwx").warnings() == []
    assert learned(parts).warnings() == []
    (clash,) = plain(parts, "teddy bear", "Bear").warnings()
    assert "'Bear'" in clash and "'teddy bear'" in clash
    (unknown,) = plain(parts, "toy", "flibber").warnings()
    assert "'flibber'" in unknown
    assert len(learned(parts, "flibber", "gizmo").warnings()) == 2

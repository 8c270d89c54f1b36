"""Texts that are not padded, stand in a template, or are read by a tokenizer that knows spaces: trained, and exact.

The family stands in `masked_flow`. Not here: text in whole chunks (`test_conditioning`), what the loop does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from apt_train.adapter import adapter_of
from apt_train.config import AdapterConfig
from apt_train.data.batch import Batch
from apt_train.data.dataset import ImageSet
from apt_train.events import PreviewEvent
from apt_train.families.components import Components, TextEncoder
from apt_train.families.network import TextInput
from apt_train.lora_check.asked import Asked
from apt_train.lora_check.check_up import check_up
from apt_train.lora_check.lora_file import read_lora
from apt_train.lora_check.subject import Subject
from apt_train.rng import generator
from apt_train.run.attention_file import read_maps
from apt_train.sample.apply import personalized
from apt_train.sample.sampler import Drawing, Sampler
from apt_train.text.conditioning import Conditioner, Conditioning
from apt_train.text.identifier import Identifier
from apt_train.training import estimate
from apt_train.training.capture import Capture, attention_maps
from apt_train.training.indicator import OverfitIndicator
from apt_train.training.memory import Savings
from apt_train.training.objective import Objective
from apt_train.training.plan import plan_run
from apt_train.training.step import TrainingStep
from apt_train.training.terms import Alignment, Denoising, Stabilization
from tests.masked_flow import AFTER, BEFORE, FramedNetwork, masked_flow_components, spaced_encoder
from tests.plain_flow import second_encoder
from tests.tiny import tiny_components
from tests.training import Recorder, pictures, quick_config, run, same_weights, stopping

SHORT, LONG = "{subject}", "{subject} on grass, a dog's bear on the {subject}"
SETTINGS: dict[str, Any] = {
    "steps": 6, "temperature": 10_000.0, "dist_weight": 0.5, "attn_weight": 2.0, "attn_layers": "all",
}  # fmt: skip


def captioned() -> ImageSet:
    return pictures(captions=[SHORT, LONG, ""])


def conditioner_of(encoders: list[TextEncoder], class_word: str = "toy", learned: bool = True) -> Conditioner:
    identifier = Identifier.from_init_word(encoders, class_word) if learned else None
    return Conditioner(encoders, identifier, class_word=class_word, name="zwx")


def ids(conditioner: Conditioner, caption: str, *, tuned: bool) -> list[int]:
    layout = conditioner.layout(caption)
    return [id for (chunk,) in (layout.tuned if tuned else layout.prior) for id in chunk.ids]


# ---- the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_it_is_trained_resumed_exported_put_back_sampled_and_looked_at(tmp_path: Path) -> None:
    prompts = ("a {subject}", LONG)
    more: dict[str, Any] = {"snapshot_every": 3, "preview_every": 6, "preview_prompts": prompts}
    run(masked_flow_components(), captioned(), output_dir=tmp_path, on_event=stopping(3), **SETTINGS, **more)
    recorder, parts = Recorder(), masked_flow_components()
    resumed = run(parts, captioned(), output_dir=tmp_path, resume=True, on_event=recorder, **SETTINGS, **more)
    assert same_weights(resumed, run(masked_flow_components(), captioned(), **SETTINGS))
    last = recorder.steps[-1]
    assert last.stabilization and last.alignment and max(max(step.gamma) for step in recorder.steps) > 0.05
    assert [step.drift["subject"] > 0 for step in recorder.steps if step.drift] == [True]
    maps = read_maps(tmp_path / "attention.safetensors")
    assert maps is not None and maps.labels == ["<start>", "<subject>", "<end>", "<rest>"]
    torch.testing.assert_close(maps.tuned.sum(dim=0), torch.ones_like(maps.tuned[0]))

    (drawn,) = [event for event in recorder.events if isinstance(event, PreviewEvent)]
    assert drawn.prior[0].tobytes() != drawn.tuned[0].tobytes()
    path = tmp_path / "toy_subject.safetensors"
    lora, learned = load_file(path), load_file(tmp_path / "toy_subject_embedding.safetensors")
    with personalized(parts, lora, learned, quick_config(**SETTINGS, **more)) as (conditioner, _):
        text, nothing = conditioner.encode(list(prompts), tuned=True), conditioner.encode([""], tuned=False)
        guided = quick_config().output
        how = Drawing(guided.preview_seed, guided.preview_steps, guided.preview_guidance)
        again = Sampler(parts, (64, 64), "cpu", torch.float32).draw(text, nothing, how)
    assert [one.tobytes() for one in again] == [one.tobytes() for one in drawn.tuned]
    subject = Subject.of(read_lora(path), embedding=learned)
    one, many = (
        check_up(parts, read_lora(path), subject, Asked(strengths=(1.0,), rows=rows, bins=2), images=captioned())
        for rows in (1, 8)
    )
    measured = [[(p.spill, p.alignment, p.context) for p in found.points] for found in (one, many)]
    assert measured[0][0] == pytest.approx(measured[1][0], 1e-4) and measured[0][0][0] > 0


@pytest.mark.parametrize("more", [{"gradient_checkpointing": True}, {"identifier_mode": "word"}, {"batch_size": 1}])
def test_it_is_trained_in_other_ways(more: dict[str, Any]) -> None:
    recorder = Recorder()
    run(masked_flow_components(), captioned(), on_event=recorder, **SETTINGS, **more)
    assert all(step.loss == step.loss and step.alignment is not None for step in recorder.steps)


def test_its_memory_is_estimated_with_its_longest_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    found = []
    for caption in (SHORT, "{subject}" + " on grass" * 6):
        parts, images = masked_flow_components(), pictures(captions=[SHORT, caption, ""])
        parts.text_encoders = [replace(second_encoder(32), padded=False)]
        found.append(estimate.estimated(plan_run(parts, images, quick_config(), device="cpu"), Savings(0)))
    short, long = found
    assert short is not None and long is not None and long.step > short.step


# ---- the mask ----------------------------------------------------------------------------------------------------


def predicted(parts: Components, text: TextInput, columns: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    """The prediction for a fixed noisy latent and the maps of all layers."""
    noisy = torch.randn(1, 4, 8, 8, generator=generator("noisy")).expand(len(text.hidden), -1, -1, -1)
    with torch.no_grad(), Capture(parts.network, parts.unet, attention=["all"]).record() as captured:
        found = parts.network.predict(parts.unet, noisy, torch.tensor(500), text, torch.float32)
    return found, attention_maps(captured, columns, count, mask=text.mask)


def both(parts: Components, text: Conditioning) -> tuple[Tensor, list[Tensor]]:
    return predicted(parts, TextInput(text.hidden, mask=text.mask), text.columns, text.num_columns)


def test_padding_has_no_effect_at_all() -> None:
    parts = masked_flow_components()
    text = conditioner_of(parts.text_encoders).encode([SHORT, LONG], tuned=True)
    assert text.mask is not None and text.mask.sum(dim=1).tolist() == [14, text.hidden.shape[1]]
    expected, maps = both(parts, text)
    text.hidden = torch.where(text.mask[..., None], text.hidden, 1e4)
    text.columns = torch.where(text.mask, text.columns, text.num_columns - 1)
    found, others = both(parts, text)
    assert torch.equal(found, expected) and len(maps) == 3
    for one, other in zip(maps, others, strict=True):
        assert torch.equal(one, other) and not one[..., -1].any()  # `<rest>`, where padding would be
        torch.testing.assert_close(one.sum(dim=-1), torch.ones_like(one[..., 0]))


@pytest.mark.parametrize("tuned", [True, False])
def test_texts_of_different_lengths_are_together_what_they_are_alone(tuned: bool) -> None:
    parts = masked_flow_components()
    conditioner = conditioner_of(parts.text_encoders)
    together = conditioner.encode([SHORT, LONG], tuned=tuned)
    found, maps = both(parts, together)
    for row, caption in enumerate((SHORT, LONG)):
        alone = conditioner.encode([caption], tuned=tuned)
        assert alone.mask is None and torch.equal(together.hidden[row, : alone.hidden.shape[1]], alone.hidden[0])
        expected, others = both(parts, alone)
        torch.testing.assert_close(found[row], expected[0], rtol=1e-5, atol=1e-5)
        for one, other in zip(maps, others, strict=True):
            torch.testing.assert_close(one[row, ..., : other.shape[-1]], other[0], rtol=1e-5, atol=1e-5)


def test_the_losses_of_a_batch_are_those_of_its_captions_alone() -> None:
    """Whatever reads the text or the maps in a step has to know the mask."""
    parts = masked_flow_components()
    adapter = adapter_of(parts.unet, AdapterConfig(rank=4), parts.family, None)
    draws = generator("losses")
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draws))
    conditioner, terms = conditioner_of(parts.text_encoders), (Denoising(), Stabilization(0.5), Alignment(2.0))
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=draws)
    losses: list[dict[str, Tensor]] = []
    for rows in ([0, 1], [0], [1]):
        batch = Batch(
            latents[rows], noise[rows], torch.tensor([120, 850])[rows], [(SHORT, LONG)[row] for row in rows], None,
            torch.zeros(len(rows), 6),
        )  # fmt: skip
        step = TrainingStep(parts, adapter, conditioner, OverfitIndicator(), Objective(terms))
        losses.append(step(batch, with_prior=True).raw)
    together, *alone = losses
    assert len(together) >= 3
    for name, loss in together.items():
        torch.testing.assert_close(loss, torch.stack([one[name] for one in alone]).mean(), rtol=1e-4, atol=1e-6)


def test_guidance_compares_texts_of_different_lengths() -> None:
    """The empty text is the shortest: it is padded, not repeated. A row alone is not padded by its batch."""
    parts = masked_flow_components()
    conditioner, sampler = conditioner_of(parts.text_encoders), Sampler(parts, (32, 32), "cpu", torch.float32)
    text, nothing = (conditioner.encode(captions, tuned=False) for captions in ([SHORT, LONG], [""]))
    noisy = torch.randn(2, 4, 8, 8, generator=generator("noisy"))
    with torch.no_grad():
        found = sampler.predictor(text, nothing, 3.0)(noisy, 500)
        empty = sampler.predictor(nothing)(noisy[:1], 500), sampler.predictor(nothing)(noisy[1:], 500)
        for row in range(2):
            alone = sampler.predictor(text, rows=range(row, row + 1))(noisy[row : row + 1], 500)
            expected = empty[row] + 3.0 * (alone - empty[row])
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-5)
            single = conditioner.encode([(SHORT, LONG)[row]], tuned=False)
            assert torch.equal(alone, sampler.predictor(single)(noisy[row : row + 1], 500))


class OneByOne(FramedNetwork):
    """For a module that knows no mask: called once for each text if their lengths differ, as in guidance."""

    def predict(self, module: Any, noisy: Any, timesteps: Any, text: TextInput, dtype: Any) -> Tensor:
        if text.mask is None:
            return super().predict(module, noisy, timesteps, text, dtype)
        texts = [TextInput(hidden[kept][None]) for hidden, kept in zip(text.hidden, text.mask, strict=True)]
        inputs = zip(noisy[:, None], timesteps.expand(len(noisy))[:, None], texts, strict=True)
        return torch.cat([super(OneByOne, self).predict(module, *given, dtype) for given in inputs])


@pytest.mark.usefixtures("no_report")
def test_a_module_that_knows_no_mask_is_called_once_for_each_text(tmp_path: Path) -> None:
    """So it is trained in batches of one, and draws and measures as if it knew."""
    parts, recorder = replace(masked_flow_components(), network=OneByOne()), Recorder()
    text = conditioner_of(parts.text_encoders).encode([SHORT, LONG], tuned=True)
    noisy, read = torch.randn(2, 4, 8, 8, generator=generator("noisy")), TextInput(text.hidden, mask=text.mask)
    with torch.no_grad():
        found, expected = (
            network.predict(parts.unet, noisy, torch.tensor(500), read, torch.float32)
            for network in (parts.network, FramedNetwork())
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    more: dict[str, Any] = {"batch_size": 1, "accumulation": 2, "preview_every": 6, "snapshot_every": 6}
    run(parts, captioned(), output_dir=tmp_path, on_event=recorder, **SETTINGS, **more)
    assert recorder.steps[-1].alignment and [step.drift["subject"] > 0 for step in recorder.steps if step.drift] == [
        True
    ]
    assert any(isinstance(event, PreviewEvent) for event in recorder.events)


def test_a_text_too_long_for_one_encoder_does_not_lengthen_anothers() -> None:
    first = replace(tiny_components().text_encoders[0], sequence=None, pooled=True)
    conditioner = conditioner_of([first, spaced_encoder()])
    text = conditioner.encode([SHORT, "a {subject}" + " on grass" * 8], tuned=True)
    assert text.pooled is not None and text.mask is not None
    assert text.mask.sum(dim=1).tolist() == [14, 31] and text.hidden.shape == (2, 31, 32)


def test_a_text_longer_than_an_encoder_reads_is_cut_and_keeps_its_length() -> None:
    encoders = [spaced_encoder(length=40)]
    conditioner = conditioner_of(encoders)
    text = conditioner.encode([SHORT, "{subject}" + " on grass" * 4], tuned=True)
    assert conditioner.num_chunks(["{subject}" + " on grass" * 4]) == 2
    assert text.mask is not None and text.mask.sum(dim=1).tolist() == [14, 9 + 2 * 13]


def test_no_text_is_empty() -> None:
    text = conditioner_of([spaced_encoder(template=("", ""), cut=0)]).encode(["", "a toy on"], tuned=False)
    assert text.mask is not None and text.mask.sum(dim=1).tolist() == [1, 3]


# ---- template and spaces -----------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["{subject}", "a", "toy", "({subject},", "sub-on", "grass.", "12"]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.sampled_from(["toy", "toy bear"]), st.sampled_from([(BEFORE, AFTER), ("Say: ", ""), ("", ".")]))
def test_a_caption_is_read_as_the_whole_sentence_would_be(
    words: list[str], class_word: str, template: tuple[str, str]
) -> None:
    encoder = spaced_encoder(template=template, cut=0)
    one, caption = conditioner_of([encoder], class_word, learned=False), " ".join(words)
    before = template[0] if words else template[0].rstrip(" ")
    for tuned, subject in ((False, class_word), (True, f"zwx {class_word}")):
        sentence = before + caption.replace("{subject}", subject) + template[1]
        expected = encoder.tokenizer(sentence)["input_ids"]
        assert ids(one, caption, tuned=tuned) == (expected or [encoder.tokenizer.pad_token_id])
    both = {tuned: one.encode([caption], tuned=tuned) for tuned in (True, False)}
    assert both[True].labels == both[False].labels and both[True].labels[0].count("<subject>") == str(words).count("{")
    assert both[True].columns.unique().tolist() == both[False].columns.unique().tolist()


@pytest.mark.parametrize("caption", ["a {subject}, on", "{subject}'s on", "a ({subject})"])
def test_signs_beside_the_subject_are_read_as_in_a_sentence_where_words_begin_with_a_space(caption: str) -> None:
    """As by T5's tokenizer, which puts a space before whatever is read alone."""
    pieces = ["</s>", "<unk>", *"\u2581as,()'", *(f"\u2581{word}" for word in ("a", "toy", "on")), "toy"]
    raw = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>")
    encoder = replace(second_encoder(), tokenizer=tokenizer, padded=False)
    expected = tokenizer(caption.replace("{subject}", "toy"))["input_ids"]
    assert ids(conditioner_of([encoder], learned=False), caption, tuned=False) == [*expected, tokenizer.eos_token_id]


def test_letters_joined_to_the_subject_are_read_alone() -> None:
    one = conditioner_of([spaced_encoder(template=("", ""), cut=0)], learned=False)
    spelled: Any = one.encoders[0].tokenizer
    assert ids(one, "{subject}s bears", tuned=False) == spelled("toy")["input_ids"] + spelled("s bears")["input_ids"]
    labels = one.encode(["a zwx toys {subject}"], tuned=False).labels[0][1:-2]
    assert labels == ["a", "\u0120", "z", "w", "x", "toy", "s", "<subject>"]
    words = conditioner_of(tiny_components().text_encoders, learned=False)  # knows neither `as` nor `q`
    found = words.encode(["q{subject}s"], tuned=False)
    assert found.labels == [["<start>", "q", "<subject>", "s", "<end>", "<rest>"]]
    assert found.columns[0, :6].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_stands_before_the_caption_is_read_and_dropped() -> None:
    encoder = spaced_encoder()
    text = conditioner_of([encoder]).encode(["a {subject} on grass"], tuned=False)
    whole: Any = encoder.tokenizer(BEFORE + "a toy on grass" + AFTER, return_tensors="pt")
    with torch.no_grad():
        states = encoder.model(input_ids=whole["input_ids"]).last_hidden_state
    torch.testing.assert_close(text.hidden, states[:, encoder.cut :])
    kept = conditioner_of([replace(encoder, cut=0)]).encode(["a {subject} on grass"], tuned=False)
    torch.testing.assert_close(kept.hidden, states)
    assert text.labels == [["<start>", "a", "<subject>", "on", "grass", "<end>", "<rest>"]]
    assert text.columns[0, :5].tolist() == [1, 2, 3, 4, 5] and kept.columns[0, encoder.cut - 1] == 0


def test_the_learned_word_is_found_in_the_caption_and_starts_as_the_word_after_a_space() -> None:
    encoders = [spaced_encoder()]
    conditioner = conditioner_of(encoders, "toy bear")
    assert conditioner.identifier is not None
    rows = encoders[0].table[torch.tensor(encoders[0].tokenizer(" toy bear")["input_ids"])]
    assert torch.equal(conditioner.identifier.rows[0], rows)
    tuned, prior = (conditioner.encode(["a {subject} on grass"], tuned=tuned) for tuned in (True, False))
    assert torch.equal(tuned.columns, prior.columns) and torch.equal(tuned.hidden, prior.hidden)  # untrained
    gradient = torch.autograd.grad(tuned.hidden.square().sum(), conditioner.identifier.rows[0])[0]
    assert bool(gradient.any(dim=1).all())


def test_a_module_without_configuration_serves_where_the_length_is_given() -> None:
    class Bare(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def get_input_embeddings(self) -> nn.Module:
            return self.inner.get_input_embeddings()

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    known = spaced_encoder(length=64)
    bare = replace(known, model=Bare(known.model))
    first, second = (conditioner_of([one]).encode([LONG], tuned=True).hidden for one in (known, bare))
    assert torch.equal(first, second)


def test_aside_the_encoder_gives_the_same_bits() -> None:
    conditioner = conditioner_of([spaced_encoder()])
    expected = conditioner.encode([SHORT, LONG], tuned=True)
    conditioner.put_aside()
    found = conditioner.encode([SHORT, LONG], tuned=True)
    assert torch.equal(found.hidden, expected.hidden) and torch.equal(found.columns, expected.columns)

"""Sampling: agreement with diffusers' own pipelines, seeds, guidance, sizes, broken numbers, prior against tuned."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageChops
from torch import Tensor

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig
from apt_train.errors import InputError
from apt_train.families.components import Components
from apt_train.families.sd.network import reads_size_ids
from apt_train.sample.sampler import Drawing, Sampler, denoise, eval_mode, initial_noise, previews, to_picture
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from tests.tiny import scaled_linear_schedule, schedule_of, tiny_components, unet_of


def text(components: Components, rows: int, length: int = 7, seed: int = 0) -> Any:
    """A stand-in for a Conditioning: random hidden states and, for SDXL, pooled vectors."""
    generator = torch.Generator().manual_seed(seed)
    width = unet_of(components).config["cross_attention_dim"]
    pooled = torch.randn(rows, 32, generator=generator) if reads_size_ids(components.unet) else None
    hidden = torch.randn(rows, length, width, generator=generator)
    return types.SimpleNamespace(hidden=hidden, pooled=pooled, mask=None)


def draw(components: Components, conditioning, unconditional=None, **changes) -> list[Image.Image]:
    how = {name: changes.pop(name, value) for name, value in (("seed", 3), ("steps", 5), ("guidance", 4.0))}
    size = changes.pop("height", 64), changes.pop("width", 64)
    sampler = Sampler(components, size, "cpu", torch.float32, **changes)
    return sampler.draw(conditioning, unconditional or text(components, 1, seed=9), Drawing(**how))


def paired(components: Components, conditioner: Any, prompts: list[str], **prior: Any) -> tuple[Any, Any]:
    """The previews of a small model with its adapter."""
    sampler, drawing = Sampler(components, (64, 64), "cpu", torch.float32), Drawing(seed=1, steps=3, guidance=3.0)
    return previews(sampler, Adapter(components.unet), conditioner, prompts, drawing, **prior)


def scheduler_like(components: Components, **changes) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=schedule_of(components).prediction, **changes,
    )  # fmt: skip


def latents_of(components: Components, monkeypatch: pytest.MonkeyPatch, *args, **changes) -> Tensor:
    """What the sampler hands to the decoder."""
    seen: list[Tensor] = []
    decode = components.decode
    monkeypatch.setattr(components, "decode", lambda latents: (seen.append(latents.clone()), decode(latents))[1])
    draw(components, *args, **changes)
    return torch.cat(seen)


def pipeline_latents(components: Components, scheduler: DDIMScheduler, conditioning, empty, guidance: float) -> Tensor:
    """The same pictures by diffusers' pipeline of the family."""
    rows = len(conditioning.hidden)
    inputs = dict(
        prompt_embeds=conditioning.hidden, negative_prompt_embeds=empty.hidden.repeat(rows, 1, 1),
        latents=torch.stack([initial_noise(3, k, (4, 16, 24)) for k in range(rows)]),
        height=64, width=96, num_inference_steps=5, guidance_scale=guidance, output_type="latent",
    )  # fmt: skip
    parts: dict[str, Any] = dict(
        vae=components.vae, text_encoder=None, tokenizer=None, unet=components.unet, scheduler=scheduler
    )
    pipeline: Any
    if reads_size_ids(components.unet):
        parts |= dict(text_encoder_2=components.text_encoders[1].model, tokenizer_2=None)
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        inputs |= dict(
            pooled_prompt_embeds=conditioning.pooled,
            negative_pooled_prompt_embeds=empty.pooled.repeat(rows, 1),
        )
    else:
        parts |= dict(safety_checker=None, feature_extractor=None)
        pipeline = StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae_scale_factor = components.family.vae_factor
    return pipeline(**inputs).images


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_agrees_with_the_diffusers_pipeline(kind, prediction, guidance, monkeypatch) -> None:
    components = tiny_components(kind, prediction)
    conditioning, empty = text(components, 2), text(components, 1, seed=9)
    wanted = pipeline_latents(components, scheduler_like(components), conditioning, empty, guidance)
    got = latents_of(components, monkeypatch, conditioning, empty, height=64, width=96, guidance=guidance)
    assert got.shape == (2, 4, 16, 24)
    assert wanted.std() > 0.1
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    extrema: Any = ImageChops.difference(a, b).getextrema()  # a pair a channel
    return max(ends[1] for ends in extrema)


def test_agrees_with_the_pipeline_under_zero_terminal_snr(monkeypatch) -> None:
    components = tiny_components("sd15", "v_prediction")
    components.schedule = scaled_linear_schedule(prediction_type="v_prediction", zero_terminal_snr=True)
    scheduler = scheduler_like(components, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    conditioning, empty = text(components, 2), text(components, 1, seed=9)
    wanted = pipeline_latents(components, scheduler, conditioning, empty, 6.0)
    got = latents_of(components, monkeypatch, conditioning, empty, height=64, width=96, guidance=6.0)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_perfect_model_is_followed_home(prediction, zero_snr) -> None:
    """With the exact prediction for one known picture, DDIM ends on alpha_bar_0 of that picture and its noise."""
    schedule = scaled_linear_schedule(prediction_type=prediction, zero_terminal_snr=zero_snr)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = schedule.sampling_timesteps(25)
    start = schedule.add_noise(clean, noise, torch.tensor([times[0]]))
    end = denoise(schedule, lambda x, t: schedule.target(clean, noise, torch.tensor([t])), start, times)
    wanted = schedule.add_noise(clean, noise, torch.tensor([0]))
    assert torch.allclose(end, wanted, atol=2e-3)


def test_timesteps_start_from_pure_noise_only_where_the_model_knows_it() -> None:
    plain, v_zero = (
        scaled_linear_schedule(),
        scaled_linear_schedule(prediction_type="v_prediction", zero_terminal_snr=True),
    )
    assert plain.sampling_timesteps(4) == [751, 501, 251, 1]
    assert v_zero.sampling_timesteps(4) == [999, 749, 499, 249]
    assert scaled_linear_schedule(zero_terminal_snr=True).sampling_timesteps(4) == [751, 501, 251, 1]
    assert max(plain.sampling_timesteps(1000)) == 999
    for wrong in (0, 1001):
        with pytest.raises(InputError, match=f"sampling steps is {wrong}"):
            plain.sampling_timesteps(wrong)


def test_a_picture_depends_on_its_seed_and_place_not_on_the_batch() -> None:
    components = tiny_components()
    conditioning = text(components, 3)
    three = draw(components, conditioning)
    assert [picture.size for picture in three] == [(64, 64)] * 3
    assert [p.tobytes() for p in draw(components, conditioning)] == [p.tobytes() for p in three]
    first = draw(components, types.SimpleNamespace(hidden=conditioning.hidden[:1], pooled=None, mask=None))
    assert first[0].tobytes() == three[0].tobytes()
    batched = draw(components, conditioning, batch_size=2)
    assert all(largest_difference(a, b) <= 1 for a, b in zip(batched, three, strict=True))
    assert draw(components, conditioning, seed=4)[0].tobytes() != three[0].tobytes()
    same_text = types.SimpleNamespace(hidden=conditioning.hidden[:1].repeat(2, 1, 1), pooled=None, mask=None)
    twins = draw(components, same_text)
    assert twins[0].tobytes() != twins[1].tobytes()


def test_guidance_reads_the_unconditional_text_only_above_one(monkeypatch) -> None:
    components = tiny_components()
    conditioning = text(components, 1)
    for guidance, differs in ((1.0, False), (3.0, True)):
        one = latents_of(components, monkeypatch, conditioning, text(components, 1, seed=5), guidance=guidance)
        other = latents_of(components, monkeypatch, conditioning, text(components, 1, seed=6), guidance=guidance)
        assert (not torch.equal(one, other)) == differs


def test_texts_of_different_length_are_guided_together(monkeypatch) -> None:
    """The unconditional text repeated to the prompt's length gives the same attention as at its own length."""
    components = tiny_components()
    long, short = text(components, 1, length=14), text(components, 1, length=7, seed=9)
    doubled = types.SimpleNamespace(hidden=short.hidden.repeat(1, 2, 1), pooled=None, mask=None)
    one = latents_of(components, monkeypatch, long, short)
    assert torch.equal(one, latents_of(components, monkeypatch, long, doubled))
    swapped = latents_of(components, monkeypatch, short, long)
    assert torch.allclose(swapped, latents_of(components, monkeypatch, doubled, long), atol=1e-5)


def test_sdxl_reads_the_size_of_the_picture(monkeypatch) -> None:
    components = tiny_components("sdxl")
    seen: list[Tensor] = []
    forward = components.unet.forward

    def spy(*args, added_cond_kwargs, **kwargs):
        seen.append(added_cond_kwargs["time_ids"])
        return forward(*args, added_cond_kwargs=added_cond_kwargs, **kwargs)

    monkeypatch.setattr(components.unet, "forward", spy)
    draw(components, text(components, 1), height=64, width=96, steps=1)
    assert seen[0].tolist() == [[64, 96, 0, 0, 64, 96]] * 2


def test_odd_sizes_are_refused() -> None:
    components = tiny_components()
    with pytest.raises(InputError, match="66 x 64 .* multiples of 4"):
        draw(components, text(components, 1), width=66)


@pytest.mark.parametrize("culprit", ["VAE", "network"])
def test_broken_numbers_become_a_notice_and_a_grey_picture(culprit, monkeypatch) -> None:
    components = tiny_components()
    conditioning = text(components, 2)
    if culprit == "VAE":
        monkeypatch.setattr(components, "decode", lambda latents: torch.full((1, 3, 64, 64), float("nan")))
    else:
        conditioning.hidden[1] = float("inf")
    notices: list[str] = []
    pictures = draw(components, conditioning, on_notice=notices.append)
    assert len(notices) == (2 if culprit == "VAE" else 1)
    assert "picture 1 is not a number" in notices[-1] and culprit in notices[-1]
    assert pictures[1].getcolors() == [(64 * 64, (128, 128, 128))]
    with pytest.warns(UserWarning, match="not a number"):
        draw(components, conditioning)


def test_eval_mode_puts_every_mode_back() -> None:
    unet = tiny_components().unet
    unet.train()
    unet.get_submodule("mid_block").eval()
    before = [part.training for part in unet.modules()]
    with contextlib.suppress(RuntimeError), eval_mode(unet):
        assert not any(part.training for part in unet.modules())
        raise RuntimeError
    assert [part.training for part in unet.modules()] == before


def test_a_picture_from_beyond_black_and_white_is_clamped() -> None:
    """A VAE returns such values at every bright edge, and in a byte they would turn round."""
    image = torch.tensor([-1.02, -1.0, 0.0, 1.0, 1.02]).expand(3, 1, 5)
    assert list(to_picture(image).tobytes()[::3]) == [0, 0, 128, 255, 255]


class WordyConditioner:
    """A stand-in: the text is random, seeded by the caption and by whether it is the tuned one."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.asked: list[tuple[tuple[str, ...], bool]] = []

    def encode(self, captions: list[str], *, tuned: bool):
        self.asked.append((tuple(captions), tuned))
        return text(self.components, len(captions), seed=len(captions[0]))  # the same text tuned or not


@pytest.fixture
def adapted() -> Iterator[Components]:
    """Tiny components with an adapter that has dropout and has left its starting point."""
    components = tiny_components()
    add_adapter(components.unet, AdapterConfig(rank=2, alpha=2.0, dropout=0.5), seed=0)
    for name, parameter in components.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    components.unet.train()
    yield components


def test_previews_pair_the_prior_with_the_tuned(adapted) -> None:
    base = tiny_components()
    conditioner, prompts = WordyConditioner(adapted), ["a {subject}", "my {subject}"]
    prior, tuned = paired(adapted, conditioner, prompts)
    assert [asked for asked in conditioner.asked] == [
        (("",), False), (("a {subject}", "my {subject}"), False), (("a {subject}", "my {subject}"), True),
    ]  # fmt: skip
    untouched, _ = paired(base, WordyConditioner(base), ["a {subject}", "my {subject}"], prior=None)
    assert [p.tobytes() for p in prior] == [p.tobytes() for p in untouched]  # the adapter off is the base model
    assert all(a.tobytes() != b.tobytes() for a, b in zip(prior, tuned, strict=True))
    kept, again = paired(adapted, conditioner, ["a {subject}", "my {subject}"], prior=prior)
    assert kept is prior and [p.tobytes() for p in again] == [p.tobytes() for p in tuned]  # no dropout, same seeds
    assert (("a {subject}", "my {subject}"), False) not in conditioner.asked[3:]
    assert adapted.unet.training


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_previews_read_the_learned_identifier_through_the_real_conditioner(kind) -> None:
    components = tiny_components(kind)
    identifier = Identifier.from_init_word(components.text_encoders, "toy")
    conditioner = Conditioner(components.text_encoders, identifier, class_word="toy", name="sub")
    prompts = [
        "a photo of {subject} on grass",
        "grass and sand " * 5 + "{subject}",
    ]  # the second in two chunks
    prior, tuned = paired(components, conditioner, prompts)
    assert all(
        largest_difference(a, b) <= 1 for a, b in zip(prior, tuned, strict=True)
    )  # untrained rows: the class word
    with torch.no_grad():
        for rows in identifier.rows:
            rows.neg_()
    _, moved = paired(components, conditioner, prompts, prior=prior)
    assert all(a.tobytes() != b.tobytes() for a, b in zip(prior, moved, strict=True))

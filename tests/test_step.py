"""One step against its formulas, from the UNet's own outputs by hand: what enters the loss, and what learns."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from apt_train.adapter import Adapter, RankByTimestep, add_adapter
from apt_train.config import AdapterConfig, AptConfig, Layers, Method, TrainConfig
from apt_train.data.batch import Batch
from apt_train.errors import InputError
from apt_train.families.components import Components
from apt_train.families.levels import even_levels
from apt_train.families.noise import NoiseSchedule, PredictionType
from apt_train.families.sd.network import reads_size_ids
from apt_train.rng import generator
from apt_train.run.log import FIELDS, TERM_NAME
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from apt_train.training.capture import Capture, attention_maps
from apt_train.training.indicator import OverfitIndicator
from apt_train.training.losses import alignment_loss, per_sample, stabilization_loss
from apt_train.training.objective import Objective, check_layers, objective_of
from apt_train.training.passes import Passes
from apt_train.training.step import StepOutput, TrainingStep
from apt_train.training.terms import ADAPTIVE, Alignment, Dco, Denoising, Preservation, Stabilization, Term, Weighting
from tests.tiny import scaled_linear_schedule, schedule_of, tiny_components, unet_of

KINDS = ("sd15", "sdxl")
CAPTION = "a photo of {subject} on grass"
RANKS = RankByTimestep(rank=4, min_rank=1, levels=even_levels(1000))
WEIGHTED, PLAIN = Denoising((ADAPTIVE,)), Denoising()
DIST, ATTN = Stabilization(0.5), Alignment(2.0)


def with_terms(*terms: Term, **more: Any) -> Objective:
    return Objective((WEIGHTED, *terms) if more.pop("weighted", False) else (PLAIN, *terms), **more)


APT = with_terms(DIST, ATTN, weighted=True, adaptive_augmentation=True)


@dataclass
class Bench:
    """A step with what it stands on."""

    step: TrainingStep
    parts: Components
    identifier: Identifier

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        rows = {f"identifier.{i}": row for i, row in enumerate(self.identifier.rows)}
        return {**Adapter(self.parts.unet).parameters, **rows}

    def gradients(self, term: Tensor) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(term, list(self.trainable.values()), allow_unused=True, retain_graph=True)
        return dict(zip(self.trainable, found, strict=True))


def bench(
    objective: Objective = APT,
    kind: str = "sd15",
    prediction: PredictionType = "epsilon",
    *,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    zero_snr: bool = False,
    fresh: bool = False,
) -> Bench:
    """A trained-looking adapter, an identifier away from its class word, and an indicator that has seen an overfit."""
    parts = tiny_components(kind, prediction)
    parts.schedule = scaled_linear_schedule(prediction_type=prediction, zero_terminal_snr=zero_snr)
    add_adapter(nn.Module.to(parts.unet, dtype), AdapterConfig(rank=4, alpha=4.0), seed=0)
    draws = generator("step adapter")
    with torch.no_grad():
        for name, parameter in Adapter(parts.unet).parameters.items():
            if ".lora_B." in name and not fresh:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draws))
    parts.unet.train()
    if recompute:
        unet_of(parts).enable_gradient_checkpointing()
    for encoder in parts.text_encoders:
        encoder.model.to(dtype)
    identifier = Identifier.from_init_word(parts.text_encoders, "toy" if fresh else "dog hat")
    conditioner = Conditioner(parts.text_encoders, identifier, class_word="toy", name="zwx")
    indicator = OverfitIndicator(temperature=2.0)
    if not fresh:
        indicator.update(torch.tensor([120, 850]), torch.tensor([1.9, 1.6]), torch.tensor([1.2, 1.4]))
    step = TrainingStep(
        parts,
        Adapter(parts.unet, RANKS if objective.rank_by_timestep else None),
        conditioner,
        indicator,
        objective,
        dtype=dtype,
        save_memory=recompute,
    )
    return Bench(step, parts, identifier)


def batch_of(
    timesteps: tuple[int, ...] = (120, 850), mask: Tensor | None = None, captions: list[str] | None = None
) -> Batch:
    draws, count = generator("step batch"), len(timesteps)
    latents, noise = torch.randn(2, count, 4, 16, 16, generator=draws)
    size_ids = torch.tensor([[64.0, 80.0, 0.0, 4.0, 64.0, 64.0]] * count)
    return Batch(latents, noise, torch.tensor(timesteps), captions or [CAPTION] * count, mask, size_ids)


def mse(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().mean(dim=(1, 2, 3))


@dataclass
class ByHand:
    """Both passes of a batch, made without the step."""

    noisy: Tensor
    prior: Tensor
    tuned: Tensor
    dist: Tensor
    attn: Tensor  # mean over samples
    maps: tuple[list[Tensor], list[Tensor]]


@torch.no_grad()
def by_hand(made: Bench, batch: Batch) -> ByHand:
    unet, conditioner = made.parts.unet, made.step.conditioner
    alpha_bar = schedule_of(made.parts).alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * batch.latents + (1 - alpha_bar).sqrt() * batch.noise

    def one(*, tuned: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        text = conditioner.encode(batch.captions, tuned=tuned)
        extra = {"text_embeds": text.pooled, "time_ids": batch.size_ids} if reads_size_ids(unet) else None
        with Capture(made.parts.network, unet, features=["up"], attention=["up"]).record() as record:
            prediction = unet(noisy, batch.timesteps, encoder_hidden_states=text.hidden, added_cond_kwargs=extra).sample
        maps = attention_maps(record, text.columns, text.num_columns)
        return prediction, list(record.features.values()), maps

    tuned = one(tuned=True)
    with Adapter(unet).disabled():
        prior = one(tuned=False)
    dist = torch.stack(stabilization_loss(tuned[1], prior[1])).sum()
    return ByHand(noisy, prior[0], tuned[0], dist, alignment_loss(tuned[2], prior[2]), (tuned[2], prior[2]))


def run(made: Bench, batch: Batch | None = None, *, with_prior: bool = True, progress: float = 1.0) -> StepOutput:
    return made.step(batch or batch_of(), with_prior=with_prior, progress=progress)


def close(found: Tensor | None, expected: Tensor | float) -> None:
    assert found is not None
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected), rtol=1e-4, atol=1e-6)


# The total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_total_is_the_formula_of_the_method(kind: str, prediction: PredictionType) -> None:
    made, batch = bench(APT, kind, prediction), batch_of()
    hand, schedule = by_hand(made, batch), schedule_of(made.parts)
    before = made.step.indicator.gamma_at(batch.timesteps)
    alpha_bar = schedule.alphas_cumprod[batch.timesteps]
    target = batch.noise
    epsilon_factor = torch.ones(2)
    if prediction == "v_prediction":
        view = alpha_bar.view(-1, 1, 1, 1)
        target, epsilon_factor = view.sqrt() * batch.noise - (1 - view).sqrt() * batch.latents, alpha_bar
    # gamma after this pass's observation: EMA of a tenth on the averages that the bench has put in
    priors, tuneds = epsilon_factor * mse(hand.prior, target), epsilon_factor * mse(hand.tuned, target)
    gaps = [0.9 * old + 0.1 * (p - t) for old, p, t in zip((0.7, 0.2), priors.tolist(), tuneds.tolist(), strict=True)]
    gamma = torch.tensor([max(0.0, 1 - math.exp(-2 * gap)) for gap in gaps])
    assert (gamma - before).abs().min() > 1e-4 and 0 < gamma.min() and gamma.max() < 1
    data = mse(hand.tuned, target)

    output = run(made, batch)
    close(output.weighted["denoising"], ((1 - gamma) * data).mean())
    close(output.weighted["stabilization"], 0.5 * hand.dist)
    close(output.weighted["alignment"], 2.0 * hand.attn)
    close(output.total, ((1 - gamma) * data).mean() + 0.5 * hand.dist + 2.0 * hand.attn)
    # what the log shows is raw
    close(output.raw["denoising"], data.mean())
    close(output.raw["stabilization"], hand.dist)
    close(output.raw["alignment"], hand.attn)


def test_gamma_is_read_after_this_pass_and_committed_later() -> None:
    made = bench()
    committed = made.step.indicator.gamma
    run(made)
    provisional = made.step.indicator.gamma
    assert not torch.equal(provisional, committed)
    made.step.indicator.discard()
    assert torch.equal(made.step.indicator.gamma, committed)


def test_a_first_step_with_an_untrained_adapter_has_nothing_to_regularise() -> None:
    """lora_B is zero and the identifier is the class word: prior and tuned are one, gamma is 0."""
    made, batch = bench(fresh=True), batch_of()
    output = run(made, batch)
    close(output.raw["stabilization"], 0.0)
    close(output.raw["alignment"], 0.0)
    assert made.step.indicator.gamma.max() < 1e-6
    close(output.total, output.raw["denoising"])


def test_parts_of_the_method_are_switched_apart() -> None:
    weight = run(bench(with_terms(weighted=True)))
    dist, attn = run(bench(with_terms(DIST))), run(bench(with_terms(ATTN)))
    plain = run(bench(Objective()), with_prior=False)
    assert set(weight.weighted) == set(plain.weighted) == {"denoising"}
    assert set(dist.weighted) == {"denoising", "stabilization"} and set(attn.weighted) == {"denoising", "alignment"}
    assert all(output.raw.keys() == output.weighted.keys() for output in (plain, weight, dist, attn))
    assert torch.equal(plain.total, plain.raw["denoising"]) and weight.total < plain.total
    both = run(bench(APT))
    for name, one in (("denoising", weight), ("stabilization", dist), ("alignment", attn)):
        assert torch.equal(both.weighted[name], one.weighted[name])


def test_watching_the_indicator_changes_no_bit_of_the_loss() -> None:
    watched, plain = bench(Objective(watch_indicator=True)), bench(Objective())
    with_prior, without = run(watched), run(plain, with_prior=False)
    assert torch.equal(with_prior.total, without.total)
    expected, found = plain.gradients(without.total), watched.gradients(with_prior.total)
    for name, gradient in expected.items():
        other = found[name]
        assert gradient is not None and other is not None and torch.equal(gradient, other)
    watched.step.indicator.commit()
    assert not torch.equal(watched.step.indicator.gamma, plain.step.indicator.gamma)


def test_a_lazy_prior_scales_the_regularisers_and_keeps_gamma_between() -> None:
    faithful, lazy = run(bench(APT)), run(bench(replace(APT, lazy_prior=4)))
    for name in ("stabilization", "alignment"):
        close(lazy.weighted[name], 4 * faithful.weighted[name].detach())
    assert torch.equal(lazy.weighted["denoising"], faithful.weighted["denoising"])
    assert torch.equal(lazy.raw["stabilization"], faithful.raw["stabilization"])
    made, batch = bench(replace(APT, lazy_prior=4)), batch_of()
    gamma = made.step.indicator.gamma_at(batch.timesteps)
    between = run(made, batch, with_prior=False)
    data = mse(by_hand(made, batch).tuned, batch.noise)
    close(between.total, ((1 - gamma) * data).mean())
    assert set(between.weighted) == {"denoising"} and set(between.raw) == {"denoising"}
    assert torch.equal(made.step.indicator.gamma_at(batch.timesteps), gamma)  # nothing was observed


def test_a_batch_is_the_mean_of_its_samples() -> None:
    objective = with_terms(DIST, ATTN)
    whole = run(bench(objective))
    halves = []
    for i in range(2):
        both = batch_of()
        tensors = {name: getattr(both, name)[i : i + 1] for name in ("latents", "noise", "timesteps", "size_ids")}
        halves.append(run(bench(objective), replace(both, captions=[CAPTION], **tensors)))
    close(whole.total, torch.stack([half.total.detach() for half in halves]).mean())


def test_captions_of_different_length_share_a_batch() -> None:
    captions = ["{subject}", "a big red toy dog with {subject} in the park on snow and sand with my hat and ball"]
    output = run(bench(), batch_of(captions=captions))
    assert torch.isfinite(output.total) and output.total.requires_grad


# Masks


def test_a_mask_enters_the_data_term_but_not_the_indicator() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :4] = 1
    masked, plain = bench(Objective(watch_indicator=True)), bench(Objective(watch_indicator=True))
    one, two = run(masked, batch_of(mask=mask)), run(plain)
    hand = by_hand(plain, batch_of())
    close(one.raw["denoising"], mse(hand.tuned[..., :4], batch_of().noise[..., :4]).mean())
    assert not torch.allclose(one.total, two.total)
    assert torch.equal(masked.step.indicator.gamma, plain.step.indicator.gamma)


def test_regularisers_see_the_whole_picture_under_a_mask() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :4] = 1
    one, two = run(bench(), batch_of(mask=mask)), run(bench())
    assert torch.equal(one.weighted["stabilization"], two.weighted["stabilization"])
    assert torch.equal(one.weighted["alignment"], two.weighted["alignment"])


# DCO


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("masked", [False, True])
def test_dco_equals_its_formula_on_the_models_own_target(prediction: PredictionType, masked: bool) -> None:
    made = bench(Objective((Dco(3.0),)), prediction=prediction)
    part = slice(0, 4) if masked else slice(None)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., part] = 1
    batch = batch_of(mask=mask if masked else None)
    hand = by_hand(made, batch)
    target = made.parts.schedule.target(batch.latents, batch.noise, batch.timesteps)[..., part]
    gaps = mse(hand.tuned[..., part], target) - mse(hand.prior[..., part], target)
    expected = sum(-math.log(1 / (1 + math.exp(3.0 * gap))) for gap in gaps.tolist()) / 2
    output = run(made, batch)
    close(output.total, expected)
    close(output.raw["denoising"], mse(hand.tuned[..., part], target).mean())
    assert set(output.weighted) == {"denoising"}


# Schedules of the alignment weight


def test_the_linear_schedule_runs_from_nothing_to_full() -> None:
    objective = with_terms(Alignment(2.0, schedule="linear"))
    full, half, none = (run(bench(objective), progress=progress) for progress in (1.0, 0.5, 0.0))
    close(half.weighted["alignment"], 0.5 * full.weighted["alignment"].detach())
    assert not none.weighted["alignment"].any()
    assert torch.equal(half.raw["alignment"], full.raw["alignment"])
    assert torch.equal(run(bench(with_terms(ATTN)), progress=0.0).weighted["alignment"], full.weighted["alignment"])


def test_the_indicator_schedule_weighs_each_sample_by_its_gamma() -> None:
    made, batch = bench(with_terms(Alignment(2.0, schedule="indicator"))), batch_of()
    tuned, prior = by_hand(made, batch).maps
    output = run(made, batch)
    gamma = made.step.indicator.gamma_at(batch.timesteps)
    each = torch.stack(
        [
            torch.stack([(t[i] - p[i]).square().sum(-1).mean() for t, p in zip(tuned, prior, strict=True)]).mean()
            for i in range(2)
        ]
    )
    assert (gamma[0] - gamma[1]).abs() > 0.1
    close(output.weighted["alignment"], 2.0 * (gamma * each).mean())
    close(output.raw["alignment"], each.mean())


@pytest.mark.parametrize("layers", ["mid+up", "all"])
def test_more_layers_give_other_terms(layers: Any) -> None:
    wide, up = run(bench(with_terms(Stabilization(0.5, layers), Alignment(2.0, layers), weighted=True))), run(bench())
    assert wide.raw["stabilization"] != up.raw["stabilization"] and wide.raw["alignment"] != up.raw["alignment"]


def test_raw_stabilization_is_not_divided() -> None:
    assert run(bench(with_terms(Stabilization(0.5, mode="raw")))).raw != run(bench(with_terms(DIST))).raw


# What learns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_term_reaches_the_adapter_and_the_identifier_and_nothing_else(kind: str, recompute: bool) -> None:
    made = bench(APT, kind, recompute=recompute)
    output = run(made)
    for name, term in output.weighted.items():
        gradients = made.gradients(term)
        reached = {key for key, gradient in gradients.items() if gradient is not None and gradient.any()}
        assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients.values())
        assert {key for key in gradients if key.startswith("identifier")} <= reached, name
        assert any(key.startswith("up_blocks") for key in reached) and any(
            key.startswith("down_blocks") for key in reached
        )
        if name == "denoising":
            assert {key for key in gradients if ".attn" in key} <= reached
    output.total.backward()
    learned = {id(parameter) for parameter in made.trainable.values()}
    modules = [made.parts.unet, *(encoder.model for encoder in made.parts.text_encoders)]
    for parameter in (p for module in modules for p in module.parameters() if id(p) not in learned):
        assert parameter.grad is None and not parameter.requires_grad
    assert all(p.grad is not None for p in made.trainable.values())


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_no_gradient(kind: str) -> None:
    plain, recomputed = bench(APT, kind), bench(APT, kind, recompute=True)
    one, two = run(plain), run(recomputed)
    assert torch.equal(one.total, two.total)
    expected, found = plain.gradients(one.total), recomputed.gradients(two.total)
    for name, gradient in expected.items():
        assert gradient is not None and found[name] is not None
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_prior_gets_no_gradient_and_leaves_the_adapter_on() -> None:
    made = bench()
    run(made)
    assert all(p.requires_grad for p in made.trainable.values())
    with torch.no_grad():
        batch, text = batch_of(), made.step.conditioner.encode([CAPTION] * 2, tuned=True)
        on = made.parts.unet(batch.latents, batch.timesteps, text.hidden).sample
        with Adapter(made.parts.unet).disabled():
            assert not torch.equal(made.parts.unet(batch.latents, batch.timesteps, text.hidden).sample, on)


def test_saturated_gamma_starves_the_data_term_alone() -> None:
    made = bench()
    made.step.indicator.update(torch.tensor([120, 850]), torch.tensor([1e6, 1e6]), torch.zeros(2))
    output = run(made)
    assert all(g is None or not g.any() for g in made.gradients(output.weighted["denoising"]).values())
    assert any(g is not None and g.any() for g in made.gradients(output.total).values())


@pytest.mark.parametrize("recompute", [False, True])
def test_no_graph_outlives_its_step(recompute: bool) -> None:
    made, seen = bench(recompute=recompute), []
    for name, module in made.parts.unet.named_modules():
        if name == "conv_out" or name.endswith((".attn1", ".attn2.to_q")):
            module.register_forward_hook(lambda _m, _i, output: seen.append(weakref.ref(output)))
    output = run(made)
    assert any(reference() is not None for reference in seen)
    output.total.backward()
    made.step.indicator.commit()
    del output
    assert seen and not any(reference() is not None for reference in seen)  # without the collector's help


# Preservation and ranks


def test_preservation_is_plain_denoising_of_the_class_with_the_adapter_on() -> None:
    made, batch = bench(), batch_of()
    text = made.step.conditioner.encode(["a photo of toy on grass"] * 2, tuned=False)
    gamma = made.step.indicator.gamma
    noisy = made.parts.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    expected = mse(made.parts.unet(noisy, batch.timesteps, text.hidden).sample, batch.noise).mean()
    found = made.step.preservation(replace(batch, captions=["a photo of toy on grass"] * 2))
    close(found, expected.detach())
    gradients = made.gradients(found)
    assert gradients["identifier.0"] is None and gradients[next(iter(gradients))] is not None
    assert torch.equal(made.step.indicator.gamma, gamma)


def test_ranks_by_timestep_act_in_the_tuned_pass() -> None:
    full, made = bench(Objective()), bench(Objective(rank_by_timestep=True))
    with made.step.adapter.at(torch.tensor([0, 850])):
        ranked = run(made, batch_of((0, 850)))
    assert not torch.allclose(run(full, batch_of((0, 850))).total, ranked.total)
    with made.step.adapter.at(torch.tensor([900, 990])):
        late = made.gradients(run(made, batch_of((900, 990))).total)
    a = late["up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"]
    assert a is not None and a[0].any() and not a[1:].any()
    # rank r at t = 0: the whole adapter
    one = batch_of((0,))
    with made.step.adapter.at(torch.tensor([0])):
        close(run(made, one).total, run(full, one).total.detach())


# Prediction types


class Guess(nn.Module):
    """A UNet whose guess of the noise depends on the caption; it speaks epsilon or the corresponding v."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule, self.config = schedule, {}

    def forward(
        self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Any = None
    ) -> Any:
        lean = encoder_hidden_states[:, 4, :2].mean(dim=1).view(-1, 1, 1, 1)  # the subject's position
        epsilon = 0.8 * noisy + lean
        self.sample = epsilon
        if self.schedule.prediction == "v_prediction":
            signal, sigma = self.schedule.signal_and_noise(timesteps)
            self.sample = (epsilon - sigma * noisy) / signal
        return self


def guessed(prediction: PredictionType) -> tuple[Tensor, Tensor]:
    parts = tiny_components()
    schedule = scaled_linear_schedule(prediction_type=prediction)
    identifier = Identifier.from_init_word(parts.text_encoders, "dog hat")
    with torch.no_grad():
        identifier.rows[0].mul_(5)
    conditioner = Conditioner(parts.text_encoders, identifier, class_word="toy", name="zwx")
    indicator = OverfitIndicator(temperature=50.0)
    guess = Guess(schedule)
    parts.unet, parts.schedule = guess, schedule
    step = TrainingStep(parts, Adapter(guess), conditioner, indicator, Objective(watch_indicator=True))
    output = step(batch_of((40, 350, 620, 980)), with_prior=True)
    indicator.commit()
    return indicator.gamma, output.raw["denoising"]


def test_equal_predictions_give_one_indicator_whatever_the_model_speaks() -> None:
    (epsilon, epsilon_loss), (v, v_loss) = guessed("epsilon"), guessed("v_prediction")
    assert (epsilon > 1e-3).sum() >= 1, "without a gap this test says nothing"
    torch.testing.assert_close(v, epsilon, rtol=1e-3, atol=1e-5)
    assert v_loss > 1.5 * epsilon_loss  # but each is trained on its own target: v-MSE = epsilon-MSE / alpha_bar


@pytest.mark.parametrize("method", [APT, Objective((Dco(1000.0),))], ids=["apt", "dco"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_zero_terminal_snr_is_finite_at_the_last_timestep(method: Objective, prediction: PredictionType) -> None:
    made = bench(method, prediction=prediction, zero_snr=True)
    output = run(made, batch_of((999, 999)))
    output.total.backward()
    assert torch.isfinite(output.total) and torch.isfinite(made.step.indicator.gamma).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.trainable.values())


# Families and precision


def test_sdxls_size_ids_and_pooled_vector_reach_the_unet() -> None:
    made, batch = bench(Objective(), "sdxl"), batch_of()
    plain = run(made, batch, with_prior=False).total
    moved = replace(batch, size_ids=batch.size_ids + 100)
    assert not torch.allclose(run(made, moved, with_prior=False).total, plain)
    unet, text = made.parts.unet, made.step.conditioner.encode(batch.captions, tuned=True)
    noisy = made.parts.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    extra = {"text_embeds": text.pooled, "time_ids": batch.size_ids}
    expected = mse(unet(noisy, batch.timesteps, text.hidden, added_cond_kwargs=extra).sample, batch.noise).mean()
    close(plain, expected.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_bfloat16_base_trains_a_float32_adapter(kind: str, recompute: bool) -> None:
    half, whole = bench(APT, kind, dtype=torch.bfloat16, recompute=recompute), bench(APT, kind)
    output = run(half)
    assert output.total.dtype == torch.float32
    torch.testing.assert_close(output.total, run(whole).total, rtol=0.05, atol=0.02)
    output.total.backward()
    for parameter in half.trainable.values():
        assert parameter.dtype == torch.float32 and parameter.grad is not None
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all()


# Methods


def objective(method: Method = "apt", **apt: Any) -> Objective:
    return objective_of(TrainConfig(class_word="toy", method=method, dco_beta=7.0, apt=AptConfig(**apt)))


OFF: dict[str, Any] = dict.fromkeys(
    ("adaptive_augmentation", "adaptive_loss_weight", "stabilization", "alignment"), False
)


def test_a_method_uses_its_own_terms() -> None:
    full = objective(dist_weight=0.3, dist_mode="raw", attn_weight=0.7, attn_schedule="linear", mask_fill=True)
    assert full.terms == (WEIGHTED, Stabilization(0.3, mode="raw"), Alignment(0.7, schedule="linear"))
    assert full.adaptive_augmentation and full.mask_fill and not full.rank_by_timestep
    assert objective("dreambooth", mask_fill=True) == Objective()
    assert objective("dco") == Objective((Dco(7.0),))
    assert objective("tlora") == Objective(rank_by_timestep=True)
    assert objective(**OFF) == objective("dreambooth")


@pytest.mark.parametrize("off", [{"dist_weight": 0.0}, {"stabilization": False}])
def test_a_weight_of_zero_leaves_the_term_out_as_its_switch_does(off: dict[str, Any]) -> None:
    assert [term.name for term in objective(**off).terms] == ["denoising", "alignment"]


def test_weightings_multiply() -> None:
    halved = Weighting(lambda passes: torch.full_like(passes.gamma, 0.5))
    one, both = run(bench(with_terms(weighted=True))), run(bench(Objective((Denoising((ADAPTIVE, halved)),))))
    close(both.total, 0.5 * one.total.detach())
    assert torch.equal(both.raw["denoising"], one.raw["denoising"])


def test_a_weighting_may_read_the_moving_averages_of_the_losses() -> None:
    """They are the one state over steps: accumulated, repeated and resumed with the indicator."""

    def by_average(passes: Passes) -> Tensor:
        indicator = passes.indicator
        return 1 / indicator.averages[1][indicator.bin_of(passes.batch.timesteps)].float()

    made = bench(Objective((Denoising((Weighting(by_average, reads_gamma=True),)),)))
    batch = batch_of()
    output, hand = run(made, batch), by_hand(made, batch)
    before = torch.tensor([1.2, 1.4])  # what the indicator has seen, in the bins of both samples
    average = before + 0.1 * (mse(hand.tuned, batch.noise) - before)
    close(output.total, (mse(hand.tuned, batch.noise) / average).mean())


def test_the_data_term_may_measure_errors_in_another_way() -> None:
    """Huber's, with the mask and the weighting of any data term."""

    def huber(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return per_sample(nn.functional.huber_loss(prediction, target, reduction="none", delta=0.1), mask)

    made, mask = bench(Objective((Denoising((ADAPTIVE,), huber),))), torch.zeros(2, 1, 16, 16)
    mask[:, :, :5] = 1
    batch = batch_of(mask=mask)
    output, hand = run(made, batch), by_hand(made, batch)
    rows = nn.functional.huber_loss(hand.tuned, batch.noise, reduction="none", delta=0.1)[:, :, :5].mean(dim=(1, 2, 3))
    close(output.raw["denoising"], rows.mean())
    close(output.total, ((1 - made.step.indicator.gamma_at(batch.timesteps)) * rows).mean())


@pytest.mark.parametrize("zero", [False, True])
def test_a_term_reads_the_signal_to_noise_ratio(zero: bool) -> None:
    """Diffusers' number; also 0, and a number, where the last step is pure noise."""
    schedule, batch = scaled_linear_schedule(zero_terminal_snr=zero), batch_of((0, 499, 999))
    made = bench(with_terms())
    unread: Any = None
    seen = Passes(batch, batch.noise, schedule, unread, None, made.step.indicator, adapter={}, predict=unread)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = DDPMScheduler(**betas, rescale_betas_zero_snr=zero)
    torch.testing.assert_close(seen.snr, compute_snr(theirs, batch.timesteps), rtol=1e-4, atol=1e-6)
    assert (seen.snr[-1] == 0) == zero


@dataclass(frozen=True)
class Alone:
    """A term that needs no prior pass."""

    name: str
    of: Callable[[Passes], Tensor]
    title: str = "Alone"
    colour: str = "#123456"
    reads_prior: bool = False
    reads_gamma: bool = False
    features: Layers | None = None
    attention: None = None
    layers_setting: str = ""

    def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
        raw = self.of(passes)
        return raw.detach(), 0.5 * raw


def test_a_term_may_ask_for_passes_on_other_captions() -> None:
    """Preservation without a prompt: both models read an empty caption, on the noisy latents of the step."""

    def blank(passes: Passes) -> Tensor:
        texts = [""] * len(passes.batch.captions)
        tuned, prior = passes.predict(texts, True), passes.predict(texts, False)
        assert tuned.requires_grad and not prior.requires_grad
        return mse(tuned, prior).mean()

    made = bench(Objective((Denoising(), Alone("blank", blank))))
    plain, found = run(bench(Objective((Denoising(),)))), run(made)
    expected = by_hand(made, replace(batch_of(), captions=["", ""]))
    close(found.raw["blank"], mse(expected.tuned, expected.prior).mean())
    assert torch.equal(found.raw["denoising"], plain.raw["denoising"])
    gradients = made.gradients(found.weighted["blank"])
    adapter = {name for name in gradients if not name.startswith("identifier")}
    assert {name for name, gradient in gradients.items() if gradient is not None} == adapter


def test_a_term_may_read_layers_of_the_tuned_pass_alone() -> None:
    """Also in steps without a prior pass, as under a lazy prior or where nothing else reads one."""

    def size(passes: Passes) -> Tensor:
        return torch.stack([kept.square().mean() for kept in passes.tuned.features("all")]).sum()

    made = bench(Objective((Denoising(), Alone("size", size, features="all"))))
    beside, without = run(made), run(made, with_prior=False)
    assert torch.equal(without.raw["size"], beside.raw["size"]) and without.raw["size"] > 0


def test_a_term_may_depend_on_the_adapters_weights_alone() -> None:
    def size(passes: Passes) -> Tensor:
        return torch.stack([weight.square().sum() for weight in passes.adapter.values()]).sum()

    made = bench(Objective((Denoising(), Alone("size", size))))
    gradients = made.gradients(run(made).weighted["size"])
    for name, weight in Adapter(made.parts.unet).parameters.items():
        gradient = gradients[name]
        assert gradient is not None and torch.equal(gradient, weight), name


@pytest.mark.parametrize("name", ["denoising", "prior_preservation", "loss", "gamma", "My term"])
def test_a_term_with_a_name_that_is_taken_is_told(name: str) -> None:
    """It would replace another term, or a field of the log, without a word."""
    with pytest.raises(AssertionError, match=f"no term can be called {name}"):
        Objective((Denoising(), Alone(name, lambda passes: passes.gamma.sum())))


def test_a_term_reads_the_progress_only_if_the_total_is_part_of_the_run() -> None:
    """Or a run could be resumed with another total."""
    made = bench(Objective((Denoising(), Alone("late", lambda passes: passes.gamma.sum() * passes.progress))))
    half, whole = (made.step(batch_of(), with_prior=False, progress=done).raw["late"] for done in (0.5, 1.0))
    assert 2 * half == whole > 0
    with pytest.raises(AssertionError, match="add its setting to reads_total_steps"):
        made.step(batch_of(), with_prior=False, progress=None)


def test_a_users_own_term_is_summed_and_logged_by_its_name() -> None:
    """The pull to the prior's prediction, written here alone: nothing else knows of it."""

    @dataclass(frozen=True)
    class Pull:
        name: str = "pull"
        title: str = "Pull to the prior"
        colour: str = "#123456"
        reads_prior: bool = True
        reads_gamma: bool = False
        features: None = None
        attention: None = None
        layers_setting: str = ""

        def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
            tuned, prior = passes.compared
            raw = mse(tuned.prediction, prior.prediction).mean()
            return raw.detach(), 3.0 * raw

    made, plain = bench(with_terms(Pull())), run(bench(with_terms()))
    output, hand = run(made), by_hand(made, batch_of())
    close(output.raw["pull"], mse(hand.tuned, hand.prior).mean())
    close(output.total, plain.total.detach() + 3 * output.raw["pull"])
    assert set(run(made, with_prior=False).weighted) == {"denoising"}


def test_a_users_own_term_says_which_setting_names_the_layers_that_a_model_lacks() -> None:
    own, parts = Stabilization(1.0, layers_setting="own_layers"), tiny_components()
    blind = SimpleNamespace(features=lambda unet, part: {})
    with pytest.raises(InputError, match="own_layers is up, but this model has no attention there"):
        check_layers(with_terms(own), cast("Any", blind), parts.unet)


def test_of_the_prior_only_what_the_terms_read_outlasts_its_pass() -> None:
    """A hundredth of what was captured; a term that reads otherwise, as a user's own may, finds all of it."""

    @dataclass(frozen=True)
    class Own:
        name: str = "own"
        title: str = "My own"
        colour: str = "#123456"
        reads_prior: bool = True
        reads_gamma: bool = False
        features: Layers = "up"
        attention: None = None
        layers_setting: str = "own_layers"

        def __call__(self, passes: Passes) -> tuple[Tensor, Tensor]:
            tuned, prior = (one.features("up") for one in passes.compared)
            assert len(tuned) == len(prior) > 0
            raw = torch.stack(stabilization_loss(tuned, prior)).sum()
            return raw.detach(), raw

    batch, passes = batch_of(), []
    for terms in ((DIST, ATTN), (DIST, ATTN, Own())):
        made = bench(with_terms(*terms))
        noisy = made.parts.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        passes.append((made.step._prior_pass(noisy, batch), run(made)))
    (lean, plain), (whole, with_own) = passes
    assert not lean.captured.features and not lean.captured.queries
    assert set(lean.readings) == {"stabilization", "alignment"}
    assert whole.captured.features and whole.captured.queries
    close(with_own.raw["own"], plain.raw["stabilization"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_formed_again_have_the_same_gradient(dtype: torch.dtype) -> None:
    """Also of half precision, where only the narrow features are kept."""
    gradients = []
    for recompute in (False, True):
        made = bench(with_terms(DIST), dtype=dtype)
        made.step.save_memory = recompute
        gradients.append(
            torch.autograd.grad(
                run(made).weighted["stabilization"], list(made.step.adapter.parameters.values()), allow_unused=True
            )
        )
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


def test_no_term_is_called_like_a_field_of_the_log() -> None:
    names = [term.name for method in get_args(Method) for term in objective(method).terms] + [Preservation().name]
    assert not set(names) & set(FIELDS) and all(map(TERM_NAME.fullmatch, names))


def test_the_prior_runs_where_something_reads_it() -> None:
    for objective in (
        Objective(adaptive_augmentation=True),
        with_terms(weighted=True),
        with_terms(DIST),
        with_terms(ATTN),
        Objective((Dco(1.0),)),
        Objective(watch_indicator=True),
    ):
        assert all(objective.needs_prior(step) for step in range(4))
    assert not any(Objective(p_max=0.5, rank_by_timestep=True).needs_prior(step) for step in range(4))
    assert [replace(APT, lazy_prior=3).needs_prior(step) for step in range(7)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("method", get_args(Method))
def test_the_settings_say_whether_the_prior_runs(method: Method) -> None:
    """The terminal, the report and the LoRA's metadata go by the settings, and the step by the objective."""
    switches = ("adaptive_augmentation", "adaptive_loss_weight", "stabilization", "alignment", "watch_indicator")
    for chosen in itertools.product([False, True], repeat=len(switches)):
        for weights in ({}, {"dist_weight": 0.0, "attn_weight": 0.0, "attn_schedule": "indicator"}):
            apt = AptConfig(**dict(zip(switches, chosen, strict=True)), **cast("Any", weights))
            config = TrainConfig(class_word="toy", method=method, apt=apt)
            assert config.measures_indicator == objective_of(config).needs_prior(0), (chosen, weights)

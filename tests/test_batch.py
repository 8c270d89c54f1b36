"""The draws of a step: alike however they are batched, and distributed as METHOD says."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_train.data.augment import Augmentation
from apt_train.data.batch import Batch, Sample, collate, draw_samples
from apt_train.data.buckets import Crop, Prepared
from apt_train.data.latent_bank import Encoder, LatentBank
from apt_train.rng import derive_seed, generator, seeded
from apt_train.training.plan import Plan
from apt_train.training.streams import Stream, build_streams
from tests.tiny import scaled_linear_schedule, tiny_components
from tests.toy_flow import FlowProcess
from tests.training import pictures, quick_config

PROCESS = scaled_linear_schedule()
NO_AUGMENTATION = torch.zeros(10, dtype=torch.float64)


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """A VAE's stand-in: 4-pixel averages, with a deviation of 0.1."""
    mean = F.avg_pool2d(images, 4)
    return mean, torch.full_like(mean, 0.1)


def picture(index: int, size: tuple[int, int] = (8, 8), mask: bool = False) -> Prepared:
    image = torch.rand(3, *size, generator=generator("picture", index)) * 2 - 1
    weights = torch.zeros(1, *size) if mask else None
    if weights is not None:
        weights[:, :, : size[1] // 2] = 1
    return Prepared(f"{index}.png", image, weights, (100 + index, 200), Crop(size, 1, 0, (3, index), (0, 0, 1, 1)))


def bank_of(pictures: list[Prepared], variants: int = 0, mask_fill: bool = False, **settings: Any) -> LatentBank:
    bank = LatentBank(
        pictures,
        Encoder(encode, 4),
        Augmentation(("affine",), max_zoom=3.0, max_degrees=15.0, mask_fill=mask_fill),
        seed=0,
        max_variants=8,
        **settings,
    )
    bank.ensure_variants(variants)
    return bank


def draw(bank: LatentBank, p_aug: Tensor = NO_AUGMENTATION, **settings: Any) -> list[Sample]:
    key = tuple(settings.pop(name, value) for name, value in (("seed", 0), ("stream", "subject"), ("step", 0)))
    return draw_samples(bank, p_aug, key, **{"count": 4, "process": PROCESS, **settings})


def many(
    bank: LatentBank, p_aug: Tensor = NO_AUGMENTATION, steps: int = 1000, count: int = 4, **settings: Any
) -> list[Sample]:
    return [sample for step in range(steps) for sample in draw(bank, p_aug, step=step, count=count, **settings)]


def same(one: Sample, two: Sample) -> bool:
    plain = (one.timestep, one.image, one.variant) == (two.timestep, two.image, two.variant)
    return plain and torch.equal(one.latent, two.latent) and torch.equal(one.noise, two.noise)


def stream() -> Stream:
    pictures = [picture(i) for i in range(3)]
    return Stream(
        name="subject",
        seed=5,
        process=PROCESS,
        bank=bank_of(pictures, 4),
        captions=["one", "two", "three"],
        example=torch.zeros(3, 8, 8, dtype=torch.uint8),
    )


def batches(batch_size: int, step: int = 7) -> list[Batch]:
    return stream().draw(
        torch.full((10,), 0.5, dtype=torch.float64),
        step,
        count=4,
        batch_size=batch_size,
        device=torch.device("cpu"),
    )


# However it is cut


@pytest.mark.parametrize("batch_size", [1, 2])
def test_accumulated_batches_draw_what_one_batch_draws(batch_size: int) -> None:
    (whole,), parts = batches(4), batches(batch_size)
    assert len(parts) == 4 // batch_size
    for name in ("latents", "noise", "timesteps", "size_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert [caption for part in parts for caption in part.captions] == whole.captions


def test_a_step_draws_the_same_whatever_came_before() -> None:
    bank, p_aug = bank_of([picture(i) for i in range(3)], 4), torch.full((10,), 0.5)
    in_order = [draw(bank, p_aug, step=step) for step in range(6)]
    torch.manual_seed(99)
    resumed = draw(bank_of([picture(i) for i in range(3)], 4), p_aug, step=5)
    assert all(same(a, b) for a, b in zip(in_order[5], resumed, strict=True))
    assert not any(same(a, b) for a, b in zip(in_order[5], in_order[4], strict=True))


def test_a_smaller_batch_is_the_beginning_of_a_larger_one() -> None:
    bank = bank_of([picture(i) for i in range(3)])
    assert all(same(a, b) for a, b in zip(draw(bank, count=2), draw(bank, count=4), strict=False))


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"stream": "preservation"}])
def test_seed_step_and_stream_draw_apart(change: dict[str, Any]) -> None:
    bank = bank_of([picture(i) for i in range(3)])
    assert not any(torch.equal(a.noise, b.noise) for a, b in zip(draw(bank), draw(bank, **change), strict=True))


def test_augmentation_changes_the_picture_and_nothing_else() -> None:
    """The number of draws is always the same, so gamma does not shift what follows."""
    bank = bank_of([picture(i) for i in range(3)], 4)
    plain, augmented = draw(bank), draw(bank, torch.ones(10))
    for one, two in zip(plain, augmented, strict=True):
        assert (one.variant == 0) and (two.variant > 0)
        assert (one.timestep, one.image) == (two.timestep, two.image) and torch.equal(one.noise, two.noise)
        assert not torch.equal(one.latent, two.latent)


# Distributions


def chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    return sum((counts[key] - value) ** 2 / value for key, value in expected.items())


def test_timesteps_are_uniform_over_the_whole_schedule() -> None:
    samples = many(bank_of([picture(0)]), steps=400, count=10)
    timesteps = [sample.timestep for sample in samples]
    assert min(timesteps) < 5 and max(timesteps) > 994 and max(timesteps) <= 999
    assert chi_square(Counter(t // 50 for t in timesteps), dict.fromkeys(range(20), 200.0)) < 43.8  # p = 0.001, 19 d.f.


def test_a_step_stays_in_one_bucket_drawn_by_its_pictures() -> None:
    sizes = [(8, 8), (8, 8), (4, 16), (8, 8), (16, 4)]
    bank = bank_of([picture(i, size) for i, size in enumerate(sizes)])
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(600):
        samples = draw(bank, step=step, count=2)
        buckets = {sizes[sample.image] for sample in samples}
        assert len(buckets) == 1
        seen[buckets.pop()] += 1
    assert seen[(8, 8)] / 600 == pytest.approx(3 / 5, abs=0.07)
    assert seen[(4, 16)] / 600 == pytest.approx(1 / 5, abs=0.06)
    assert {sample.latent.shape for sample in samples} == {(3, *(side // 4 for side in sizes[samples[0].image]))}


def test_pictures_of_a_bucket_are_equally_likely() -> None:
    counts = Counter(sample.image for sample in many(bank_of([picture(i) for i in range(5)]), steps=500))
    assert chi_square(counts, dict.fromkeys(range(5), 400.0)) < 18.5  # p = 0.001, 4 d.f.


def test_each_timestep_bin_is_augmented_with_its_own_probability() -> None:
    p_aug = torch.tensor([0.0, 0.8, 0.3, 1.0])
    samples = many(bank_of([picture(i) for i in range(2)], 4), p_aug, steps=200, count=16)
    for b, chance in enumerate(p_aug.tolist()):
        inside = [sample.variant > 0 for sample in samples if sample.timestep // 250 == b]
        share = sum(inside) / len(inside)
        assert share == chance if chance in (0.0, 1.0) else share == pytest.approx(chance, abs=0.06)


def test_bins_follow_the_indicators_where_the_schedule_does_not_divide() -> None:
    p_aug = torch.tensor([0.0, 1.0, 0.0])
    for sample in many(bank_of([picture(0)], 2), p_aug, steps=200, process=scaled_linear_schedule(10)):
        assert (sample.variant > 0) == (sample.timestep * 3 // 10 == 1)


def test_bins_follow_the_noise_level_and_timesteps_the_process() -> None:
    class Late(FlowProcess):
        """Timesteps crowd at the noisy end, and only every third is trained at."""

        def level(self, timesteps: Tensor) -> Tensor:
            return (timesteps.float() / 999).sqrt()

        def draw(self, draws: torch.Generator) -> int:
            return 3 * int(torch.randint(self.num_timesteps // 3, (1,), generator=draws))

    samples = many(bank_of([picture(0)], 2), torch.tensor([1.0, 0.0]), steps=100, process=Late())
    assert {sample.timestep % 3 for sample in samples} == {0}
    assert {sample.variant > 0 for sample in samples} == {True, False}
    assert all((sample.variant > 0) == (sample.timestep < 250) for sample in samples)


def test_variants_are_uniform_over_those_present() -> None:
    counts = Counter(s.variant for s in many(bank_of([picture(0)], 6), torch.ones(10), steps=100, count=24))
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert chi_square(counts, dict.fromkeys(range(1, 7), 400.0)) < 20.5  # p = 0.001, 5 d.f.


def test_picture_and_variant_are_drawn_apart() -> None:
    samples = many(bank_of([picture(i) for i in range(3)], 3), torch.ones(10), steps=60, count=15)
    counts = Counter(3 * sample.image + sample.variant - 1 for sample in samples)
    assert chi_square(counts, dict.fromkeys(range(9), 100.0)) < 26.1  # p = 0.001, 8 d.f.


def test_without_variants_the_picture_stays_as_it_is() -> None:
    assert {s.variant for s in draw(bank_of([picture(0)]), torch.ones(10))} == {0}


def test_latents_are_drawn_anew_from_the_posterior_apart_from_the_noise() -> None:
    bank = bank_of([picture(0)])
    mean = bank.latent(0, 0, torch.zeros(3, 2, 2))
    samples = many(bank, steps=400, count=1)
    draws = torch.stack([(sample.latent - mean) / 0.1 for sample in samples]).flatten()
    noises = torch.stack([sample.noise for sample in samples]).flatten()
    for values in (draws, noises):
        assert values.mean().item() == pytest.approx(0, abs=0.05) and values.std().item() == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(torch.stack([draws, noises]))[0, 1].abs() < 0.05


# Batches


def test_a_batch_holds_its_samples_in_order() -> None:
    (batch,) = batches(4)
    assert batch.latents.shape == batch.noise.shape == (4, 3, 2, 2) and batch.timesteps.dtype == torch.int64
    images = [["one", "two", "three"].index(caption) for caption in batch.captions]
    assert list(batch.images) == images
    assert batch.size_ids.tolist() == [[100.0 + i, 200.0, 3.0, i, 8.0, 8.0] for i in images]
    assert batch.size_ids.dtype == torch.float32 and batch.mask is None


def test_masks_are_ones_for_samples_that_have_none() -> None:
    pictures = [picture(0), picture(1, mask=True)]
    bank = bank_of(pictures)
    drawn = (draw(bank, step=step) for step in range(50))
    samples = next(found for found in drawn if {sample.image for sample in found} == {0, 1})
    batch = collate(samples, ["a", "b"], torch.device("cpu"))
    assert batch.mask is not None and batch.mask.shape == (4, 1, 2, 2)
    for sample, mask in zip(samples, batch.mask, strict=True):
        assert mask.flatten().tolist() == ([1, 0, 1, 0] if sample.image == 1 else [1, 1, 1, 1])


def test_masking_the_fill_touches_augmented_samples_alone() -> None:
    plain, masked = (bank_of([picture(0, (32, 32))], 4, mask_fill) for mask_fill in (False, True))
    assert all(s.mask is None for s in draw(plain, torch.ones(10)))
    assert all(s.mask is None for s in draw(masked))
    masks = [s.mask for s in draw(masked, torch.ones(10))]
    assert any(mask is not None and 0 < float(mask.mean()) < 1 for mask in masks)


# Keys


def test_keys_name_draws_that_are_apart_and_stay() -> None:
    keys = [(0, "subject", step, index) for step in range(40) for index in range(40)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert 0 <= derive_seed("x") < 2**63
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))


def test_seeding_puts_the_global_generator_back_also_after_an_exception() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(1, "dropout"):
        first = torch.rand(2)
    with pytest.raises(RuntimeError), seeded(1, "dropout"):
        assert torch.equal(torch.rand(2), first)
        raise RuntimeError
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("device", ["cuda:1", "xpu:1"])
def test_seeding_reaches_the_generator_of_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of that GPU, not of the current one."""
    module, current, states = torch.get_device_module(torch.device(device).type), ["0"], {"0": 5, "1": 7}

    @contextlib.contextmanager
    def entered(other: torch.device) -> Iterator[None]:
        current.append(str(other.index))
        yield
        current.pop()

    monkeypatch.setattr(module, "device", entered)
    monkeypatch.setattr(module, "get_rng_state", lambda other: states[str(other.index)])
    monkeypatch.setattr(module, "set_rng_state", lambda state, other: states.update({str(other.index): state}))
    monkeypatch.setattr(module, "manual_seed", lambda seed: states.update({current[-1]: seed}))
    with seeded(1, "dropout", device=device):
        assert states == {"0": 5, "1": derive_seed(1, "dropout")}
    assert states == {"0": 5, "1": 7} and current == ["0"]


@pytest.mark.parametrize(("resolution", "limit"), [(64, 1.0), (192, 1.125), (0, 1.0)])
def test_auto_zooms_as_far_as_the_latents_of_the_training_size_allow(resolution: int, limit: float) -> None:
    """Not those of the model's own size; the variants are those of the number it stands for."""
    components, images = tiny_components(), pictures(1)

    def variant(max_zoom: float | str) -> Tensor:
        config = quick_config(resolution=resolution, max_zoom=max_zoom)
        cpu, quiet = torch.device("cpu"), lambda *_: None
        bank = build_streams(Plan(components, images, None, config, cpu, torch.float32), quiet, quiet)[0].bank
        bank.ensure_variants(1)
        return bank.latent(0, 1, torch.zeros(bank.latent_shape(0)))

    assert torch.equal(variant("auto"), variant(limit))
    assert not torch.equal(variant("auto"), variant(limit + 0.5))

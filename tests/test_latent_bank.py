"""The latent bank: what it encodes and when, that only (seed, image, variant) matters, its masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from apt_train.data.augment import Augmentation, draw_variant
from apt_train.data.buckets import Crop, Prepared
from apt_train.data.latent_bank import Encoder, LatentBank
from apt_train.errors import InputError
from apt_train.rng import generator
from tests.tiny import tiny_components

FACTOR = 4
ENCODE = tiny_components().encode
AFFINE = Augmentation(("affine",), max_zoom=3.0, max_degrees=15.0)


def pictures(
    masks: bool = False, sizes: tuple[tuple[int, int], ...] = ((32, 32), (24, 40), (32, 32))
) -> list[Prepared]:
    found = []
    for index, (height, width) in enumerate(sizes):
        image = torch.rand(3, height, width, generator=generator("picture", index)) * 2 - 1
        mask = torch.rand(1, height, width, generator=generator("mask", index)) if masks and index != 1 else None
        size = (height, width)
        found.append(Prepared(f"{index}.png", image, mask, size, Crop(size, 1, 0, (0, 0), (0, 0, width, height))))
    return found


def make_bank(
    prepared: list[Prepared] | None = None, encode: Callable[..., Any] = ENCODE, **changes: Any
) -> LatentBank:
    encoder = Encoder(encode, FACTOR, changes.pop("on_device", contextlib.nullcontext))
    shape = {name: changes.pop(name) for name in ("kinds", "max_zoom", "max_degrees", "mask_fill") if name in changes}
    settings: dict[str, Any] = {"seed": 3, "max_variants": 6, **changes}
    return LatentBank(pictures() if prepared is None else prepared, encoder, replace(AFFINE, **shape), **settings)


def mean_and_std(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = ENCODE(images)
    assert std is not None
    return mean, std


def contents(bank: LatentBank, images: int = 3) -> list[torch.Tensor]:
    """Mean and std of everything in the bank."""
    found = []
    for image in range(images):
        for variant in range(bank.variants + 1):
            zeros = torch.zeros(bank.latent_shape(image))
            found += [bank.latent(image, variant, zeros), bank.latent(image, variant, zeros + 1)]
    return found


def all_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_plain_latent_is_mean_plus_std_times_noise():
    bank, prepared = make_bank(), pictures()
    assert bank.variants == 0 and not bank.fixed
    assert bank.buckets == {(32, 32): [0, 2], (24, 40): [1]}
    for index, item in enumerate(prepared):
        mean, std = mean_and_std(item.image[None])
        assert bank.latent_shape(index) == (4, item.crop.bucket[0] // FACTOR, item.crop.bucket[1] // FACTOR)
        noise = torch.randn(bank.latent_shape(index), generator=generator("noise"))
        latent = bank.latent(index, 0, noise)
        assert torch.equal(latent, mean[0] + std[0] * noise)
        assert latent.dtype == torch.float32 and not latent.requires_grad


def test_a_variant_is_the_encoded_drawing_of_its_own_seed():
    bank = make_bank()
    bank.ensure_variants(2)
    item = pictures()[1]
    picture, _, _ = draw_variant(
        item.image,
        None,
        AFFINE,
        generator(3, "variant", 1, 2),
    )
    assert torch.equal(bank.latent(1, 2, torch.zeros(bank.latent_shape(1))), ENCODE(picture[None])[0][0])


def test_blocks_order_and_resume_do_not_change_a_bit():
    at_once = make_bank()
    at_once.ensure_variants(6)
    in_steps = make_bank()
    for count in (1, 0, 2, 5, 3, 6, 6):
        in_steps.ensure_variants(count)
        assert in_steps.variants >= count
    assert at_once.variants == in_steps.variants == 6
    assert all_equal(contents(at_once), contents(in_steps))
    # Alone or among others, a picture's entries are its own.
    alone = make_bank(pictures()[:1])
    alone.ensure_variants(6)
    assert all_equal(contents(alone, 1), contents(at_once, 1))


def test_variants_differ_by_variant_image_seed_and_settings():
    prepared = [pictures()[0]] * 2
    bank = make_bank(prepared)
    bank.ensure_variants(3)
    entries = contents(bank, 2)[::2]
    assert torch.equal(entries[0], entries[4])  # the plain ones are of the same picture
    distinct = [entries[0], *entries[1:4], *entries[5:8]]
    assert all(not torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    one_each: dict[str, Any] = {"seed": 4, "max_zoom": 1.5, "max_degrees": 40.0, "kinds": ("flip", "color")}
    for name, value in one_each.items():
        other = make_bank(prepared, **{name: value})
        other.ensure_variants(3)
        assert not all_equal(contents(other, 2), contents(bank, 2)), name


def test_pictures_are_encoded_one_by_one_and_only_when_needed():
    shapes: list[tuple[int, ...]] = []
    rounds: list[int] = []

    def counting(images: torch.Tensor) -> Any:
        assert not torch.is_grad_enabled()
        assert rounds and rounds[-1] == -1, "encoded outside of on_device"
        shapes.append(tuple(images.shape))
        return ENCODE(images)

    @contextlib.contextmanager
    def on_device() -> Iterator[None]:
        rounds.append(-1)
        yield
        rounds[-1] = len(shapes)

    bank = make_bank(encode=counting, on_device=on_device)
    assert rounds == [3] and shapes == [(1, 3, 32, 32), (1, 3, 24, 40), (1, 3, 32, 32)]
    bank.ensure_variants(0)
    assert rounds == [3]
    bank.ensure_variants(4)
    assert rounds == [3, 15]
    bank.ensure_variants(4)
    bank.ensure_variants(2)
    assert rounds == [3, 15]
    bank.ensure_variants(100)  # no more than max_variants
    assert bank.variants == 6 and rounds == [3, 15, 21]


def test_variants_come_in_blocks_as_the_augmentation_rises():
    bank = make_bank(max_variants=32)
    wanted = [bank.wanted_variants(p / 100, 0.8) for p in range(0, 101)]
    assert wanted[0] == 0 and wanted[1] == 4 and wanted[40] == 16 and wanted[80] == wanted[100] == 32
    assert wanted == sorted(wanted) and set(wanted) == set(range(0, 33, 4))
    assert bank.variants == 0  # asking makes none
    assert make_bank(max_variants=6).wanted_variants(0.8, 0.8) == 6
    assert bank.wanted_variants(0.0, 0.0) == 0 and bank.wanted_variants(0.5, 0.0) == 0


def test_without_a_std_the_latents_are_fixed():
    bank = make_bank(encode=lambda images: (ENCODE(images)[0], None))
    bank.ensure_variants(1)
    assert bank.fixed
    noise = torch.randn(bank.latent_shape(0), generator=generator("noise"))
    for variant in (0, 1):
        first = bank.latent(0, variant, noise)
        assert torch.equal(first, bank.latent(0, variant, -noise))
    first += 1  # what is handed out is the caller's own
    assert not torch.equal(first, bank.latent(0, 1, noise))


def test_half_precision_encoders_are_kept_in_float32():
    bank = make_bank(encode=lambda images: tuple(part.to(torch.bfloat16) for part in mean_and_std(images)))
    assert bank.latent(0, 0, torch.zeros(bank.latent_shape(0))).dtype == torch.float32


@pytest.mark.parametrize("part", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused_by_name(part, value):
    def overflowing(images: torch.Tensor) -> Any:
        mean, std = (entry.clone() for entry in mean_and_std(images))
        if images.shape[-1] == 40:
            (mean if part == "mean" else std)[0, 0, 0, 0] = value
        return mean, std

    with pytest.raises(InputError, match=r"1\.png.*float32 or bfloat16"):
        make_bank(encode=overflowing)


def test_a_failed_round_leaves_the_bank_as_it_was():
    calls = 0

    def failing(images: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        mean, std = ENCODE(images)
        return (mean * float("nan") if calls == 8 else mean), std

    bank = make_bank(encode=failing)
    with pytest.raises(InputError):
        bank.ensure_variants(4)
    assert bank.variants == 0
    bank.ensure_variants(4)
    whole = make_bank()
    whole.ensure_variants(4)
    assert all_equal(contents(bank), contents(whole))


def test_no_mask_where_nothing_is_masked():
    bank, masked = make_bank(), make_bank(mask_fill=True)
    bank.ensure_variants(2)
    assert all(bank.mask(image, variant) is None for image in range(3) for variant in range(3))
    assert all(masked.mask(image, 0) is None for image in range(3))
    flipped = make_bank(kinds=("flip",), mask_fill=True)
    flipped.ensure_variants(1)
    assert flipped.mask(0, 1) is None  # no fill


def test_mask_fill_is_the_share_of_the_picture_in_each_latent_position():
    bank, item = make_bank(mask_fill=True), pictures()[1]
    bank.ensure_variants(3)
    for variant in (1, 2, 3):
        _, _, inside = draw_variant(item.image, None, AFFINE, generator(3, "variant", 1, variant))
        mask = bank.mask(1, variant)
        assert mask is not None and mask.shape == (1, 6, 10) and mask.dtype == torch.float32
        for row in range(6):
            for column in range(10):
                area = inside[:, row * FACTOR : (row + 1) * FACTOR, column * FACTOR : (column + 1) * FACTOR]
                assert mask[0, row, column].item() == pytest.approx(area.float().mean().item())


def test_the_users_mask_is_averaged_and_moved_with_its_picture():
    prepared = pictures(masks=True)
    bank = make_bank(prepared)
    bank.ensure_variants(2)
    plain = bank.mask(0, 0)
    assert plain is not None and prepared[0].mask is not None
    assert plain[0, 2, 3].item() == pytest.approx(prepared[0].mask[0, 8:12, 12:16].mean().item())
    assert bank.mask(1, 0) is None
    _, moved, inside = draw_variant(prepared[0].image, prepared[0].mask, AFFINE, generator(3, "variant", 0, 2))
    assert moved is not None
    filled = make_bank(prepared, mask_fill=True)
    filled.ensure_variants(2)
    for made, expected in ((bank, moved), (filled, moved * inside)):
        found = made.mask(0, 2)
        assert found is not None
        torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(expected[None], FACTOR)[0])


def test_masks_do_not_touch_the_latents():
    masked, plain = make_bank(pictures(masks=True)), make_bank()
    masked.ensure_variants(2)
    plain.ensure_variants(2)
    assert all_equal(contents(masked), contents(plain))


def test_a_bank_without_variants_serves_too():
    bank = make_bank(max_variants=0, kinds=())
    bank.ensure_variants(3)
    assert bank.variants == 0 and bank.wanted_variants(0.8, 0.8) == 0

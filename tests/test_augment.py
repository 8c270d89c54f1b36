"""The affine map against a per-pixel reference, hand-made cases and properties; the further kinds."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_train.data.augment import Augmentation, affine, affine_mask, draw_variant, zoom_limit
from apt_train.rng import generator

ZOOMS = st.floats(1.0, 3.0)
DEGREES = st.floats(-180.0, 180.0)
SHIFTS = st.floats(-0.3, 0.3)


def smooth_picture(height: int, width: int) -> torch.Tensor:
    """Three different slow waves, so that every direction and channel can be told from the others."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [torch.sin(3 * x + y), torch.cos(2 * y - x), torch.sin(4 * x * y + 1)]
    return torch.stack(waves) * 0.9


def dot(height: int, width: int, row: int, column: int) -> torch.Tensor:
    image = torch.full((1, height, width), -1.0)
    image[0, row, column] = 1.0
    return image


def brightest(image: torch.Tensor) -> tuple[int, int]:
    place = int(image[0].argmax())
    return place // image.shape[-1], place % image.shape[-1]


def reference(image: torch.Tensor, zoom: float, degrees: float, shift_x: float, shift_y: float, taps: int = 4):
    """Per pixel the mean of taps x taps bilinear readings of the source, black beyond it."""
    channels, height, width = image.shape
    out = torch.full((channels, height, width), -1.0)
    inside = torch.zeros(1, height, width, dtype=torch.bool)
    angle = math.radians(degrees)
    for row in range(height):
        for column in range(width):
            for part in range(taps * taps):
                y = row + (part // taps + 0.5) / taps - height / 2 - shift_y * height
                x = column + (part % taps + 0.5) / taps - width / 2 - shift_x * width
                source = place_in_source(x, y, zoom, angle, height, width)
                out[:, row, column] += (read_bilinear(image, *source) + 1) / taps**2
            y, x = row + 0.5 - height / 2 - shift_y * height, column + 0.5 - width / 2 - shift_x * width
            y, x = place_in_source(x, y, zoom, angle, height, width)
            inside[0, row, column] = 0 <= y <= height and 0 <= x <= width
    return out, inside


def place_in_source(x: float, y: float, zoom: float, angle: float, height: int, width: int) -> tuple[float, float]:
    """Undo the turn with up as +y, then the zoom; (row, column) from the top left corner."""
    up = -y
    back_x = math.cos(-angle) * x - math.sin(-angle) * up
    back_up = math.sin(-angle) * x + math.cos(-angle) * up
    return height / 2 - zoom * back_up, width / 2 + zoom * back_x


def read_bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    _, height, width = image.shape
    top, left = math.floor(y - 0.5), math.floor(x - 0.5)
    total = torch.zeros(image.shape[0])
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column))
            known = 0 <= row < height and 0 <= column < width
            total += weight * (image[:, row, column] if known else torch.full_like(total, -1.0))
    return total


def test_identity_gives_the_picture_back():
    image = torch.rand(3, 40, 24, generator=generator("identity")) * 2 - 1
    moved, inside = affine(image, 1.0, 0.0, 0.0, 0.0)
    assert moved.dtype == torch.float32 and inside.dtype == torch.bool and inside.shape == (1, 40, 24)
    torch.testing.assert_close(moved, image, atol=1e-6, rtol=0)
    assert inside.all()


@pytest.mark.parametrize(
    ("zoom", "degrees", "shift_x", "shift_y"),
    [
        (1.0, 15.0, 0.0, 0.0),
        (1.0, 0.0, 0.21, -0.13),
        (2.0, -40.0, 0.1, 0.2),
        (2.6, 100.0, -0.2, 0.1),
        (1.3, 7.0, 0.05, 0.0),
    ],
)
def test_equals_a_per_pixel_reference_away_from_the_edge(zoom, degrees, shift_x, shift_y):
    image = smooth_picture(24, 36)
    moved, inside = affine(image, zoom, degrees, shift_x, shift_y)
    expected, expected_inside = reference(image, zoom, degrees, shift_x, shift_y)
    # Pixels whose centre lies on the very edge may fall either way by rounding.
    assert (inside != expected_inside).float().mean() < 0.01
    # Two pixels clear of the content's edge, which may also run just beyond the canvas.
    core = torch.zeros_like(inside)
    core[:, 2:-2, 2:-2] = torch.nn.functional.max_pool2d((~expected_inside).float()[None], 5, 1)[0] == 0
    outer = torch.nn.functional.max_pool2d(expected_inside.float()[None], 5, 1, 2)[0] == 0
    assert core.sum() > 20 and (moved - expected).abs()[:, core[0]].max() < 0.06
    assert (moved[:, outer[0]] == -1).all()
    assert (moved - expected).abs().mean() < 0.03  # the soft edge included


def test_turning_is_counter_clockwise():
    """A dot right of the centre goes to the top, then left, then to the bottom."""
    image = dot(33, 33, 16, 28)
    assert [brightest(affine(image, 1.0, degrees, 0, 0)[0]) for degrees in (90, 180, 270, -90)] == [
        (4, 16), (16, 4), (28, 16), (28, 16),
    ]  # fmt: skip


def test_a_right_angle_is_exact_and_a_wide_picture_is_not_sheared():
    square = torch.rand(3, 16, 16, generator=generator("right angle")) * 2 - 1
    torch.testing.assert_close(affine(square, 1.0, 90.0, 0, 0)[0], square.rot90(1, (1, 2)), atol=1e-5, rtol=0)
    # In a canvas of 20 x 60 a dot 8 right of the centre goes 8 up: the distance in pixels stays.
    assert brightest(affine(dot(21, 61, 10, 38), 1.0, 90.0, 0, 0)[0]) == (2, 30)


def test_shifts_are_fractions_of_the_canvas_right_and_down():
    image = torch.rand(3, 16, 32, generator=generator("shift")) * 2 - 1
    moved, inside = affine(image, 1.0, 0.0, 0.25, 0.5)  # 8 pixels right, 8 down
    torch.testing.assert_close(moved[:, 8:, 8:], image[:, :8, :24], atol=1e-6, rtol=0)
    assert (moved[:, :8] == -1).all() and (moved[:, :, :8] == -1).all()
    expected = torch.zeros(1, 16, 32, dtype=torch.bool)
    expected[:, 8:, 8:] = True
    assert torch.equal(inside, expected)


def test_a_zoom_of_two_puts_the_halved_picture_in_the_middle():
    image = smooth_picture(32, 48)
    moved, inside = affine(image, 2.0, 0.0, 0.0, 0.0)
    halved = torch.nn.functional.avg_pool2d(image[None], 2)[0]
    torch.testing.assert_close(moved[:, 9:23, 13:35], halved[:, 1:15, 1:23], atol=0.02, rtol=0)
    expected = torch.zeros(1, 32, 48, dtype=torch.bool)
    expected[:, 8:24, 12:36] = True
    assert torch.equal(inside, expected)
    assert (moved[:, ~expected[0]] == -1).all()


@pytest.mark.parametrize("zoom", [1.9, 2.0, 2.5, 3.0])
def test_fine_stripes_turn_grey_rather_than_alias(zoom):
    stripes = torch.ones(3, 96, 96)
    stripes[:, :, ::2] = -1
    moved, inside = affine(stripes, zoom, 0.0, 0.0, 0.0)
    side = round(96 / zoom)
    core = moved[:, 48 - side // 3 : 48 + side // 3, 48 - side // 3 : 48 + side // 3]
    assert core.abs().max() < 0.12


def test_the_type_is_kept():
    assert affine(torch.zeros(3, 8, 8, dtype=torch.bfloat16), 1.5, 5.0, 0, 0)[0].dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(zoom=ZOOMS, degrees=DEGREES, shift_x=SHIFTS, shift_y=SHIFTS, seed=st.integers(0, 99))
def test_values_stay_in_range_and_the_fill_is_black(zoom, degrees, shift_x, shift_y, seed):
    image = torch.rand(3, 20, 28, generator=generator(seed)) * 2 - 1
    moved, inside = affine(image, zoom, degrees, shift_x, shift_y)
    assert moved.shape == image.shape and moved.isfinite().all()
    assert moved.min() >= -1 and moved.max() <= 1
    far = torch.nn.functional.max_pool2d(inside.float()[None], 5, 1, 2)[0] == 0
    assert (moved[:, far[0]] == -1).all()


@settings(max_examples=40, deadline=None)
@given(zoom=st.floats(1.5, 3.0), degrees=st.floats(-15.0, 15.0), level=st.floats(-0.9, 1.0))
def test_area_shrinks_by_the_zoom_squared_and_a_plain_colour_stays(zoom, degrees, level):
    """At these zooms the turned content lies wholly on the canvas."""
    moved, inside = affine(torch.full((3, 64, 64), level), zoom, degrees, 0.0, 0.0)
    assert inside.float().mean().item() == pytest.approx(1 / zoom**2, abs=0.03)
    # What shines is the area times the level above black, soft edge included.
    assert ((moved + 1) / (level + 1)).mean().item() == pytest.approx(1 / zoom**2, rel=0.03)
    core = torch.nn.functional.max_pool2d((~inside).float()[None], 5, 1, 2)[0] == 0
    assert (moved[:, core[0]] - level).abs().max() < 1e-5


def test_a_mask_goes_with_its_picture_and_continues_into_the_fill():
    """Left half marked, moved right by a quarter: the fill at the left is marked as the edge was."""
    mask = torch.zeros(1, 16, 32)
    mask[:, :, :16] = 1
    moved = affine_mask(mask, 1.0, 0.0, 0.25, 0.0)
    expected = torch.zeros(1, 16, 32)
    expected[:, :, :24] = 1
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)
    assert affine_mask(torch.ones(1, 16, 32), 2.3, 11.0, 0.1, -0.1).min() == pytest.approx(1.0)
    ring_free = torch.zeros(1, 16, 32)
    ring_free[:, 4:12, 8:24] = 1  # the background is left out, and so is the fill
    small = affine_mask(ring_free, 2.0, 0.0, 0.0, 0.0)
    assert small[:, :5].max() == 0 and small[:, 7:9, 14:18].min() == 1


def draw(kinds=("affine",), mask=None, seed=0, image=None, max_zoom=3.0, max_degrees=15.0):
    image = smooth_picture(24, 36) if image is None else image
    return draw_variant(image, mask, Augmentation(kinds, max_zoom, max_degrees), generator(seed))


def test_upright_variants_lie_wholly_on_the_canvas_at_uniform_zooms_and_places():
    zooms, lefts, tops = [], [], []
    image = torch.ones(3, 60, 60)
    for seed in range(300):
        _, _, inside = draw(image=image, seed=seed, max_degrees=0.0)
        rows, columns = inside[0].any(1).sum().item(), inside[0].any(0).sum().item()
        assert abs(rows - columns) <= 1 and inside.sum() == rows * columns
        zoom = 60 / columns
        assert 60 / 3 - 1 <= columns <= 60  # nothing is cut off
        zooms.append(zoom)
        if columns < 50:
            lefts.append(inside[0].any(0).float().argmax().item() / (60 - columns))
            tops.append(inside[0].any(1).float().argmax().item() / (60 - rows))
    for values, low, high in ((zooms, 1.0, 3.0), (lefts, 0.0, 1.0), (tops, 0.0, 1.0)):
        quartiles = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75]))
        expected = low + (high - low) * torch.tensor([0.25, 0.5, 0.75])
        assert (quartiles - expected).abs().max() < 0.12 * (high - low), quartiles


def test_variants_turn_evenly_either_way_within_the_limit():
    angles = []
    bright = dot(61, 61, 30, 54)  # to the right of the middle, where a turn moves it up or down
    for seed in range(200):
        row, column = brightest(draw(image=bright, seed=seed, max_zoom=1.0, max_degrees=30.0)[0])
        angles.append(math.degrees(math.atan2(30 - row, column - 30)))
    assert max(map(abs, angles)) <= 32  # a pixel is 2.4 degrees
    quartiles = torch.tensor(angles).quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert (quartiles - torch.tensor([-15.0, 0.0, 15.0])).abs().max() < 5, quartiles


def test_draws_depend_on_the_generator_and_the_ranges_have_an_effect():
    first, again, other = draw(seed=1)[0], draw(seed=1)[0], draw(seed=2)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    unmoved = draw(seed=1, max_zoom=1.0, max_degrees=0.0)[0]
    torch.testing.assert_close(unmoved, smooth_picture(24, 36), atol=1e-6, rtol=0)
    assert not torch.equal(draw(seed=1, max_degrees=45.0)[0], first)


def test_a_reflected_fill_mirrors_the_picture_at_its_edges() -> None:
    image, mask = smooth_picture(16, 24), torch.rand(1, 16, 24, generator=generator("mask"))
    black, inside = affine(image, 2.0, 0.0, 0.0, 0.0)
    moved, same = affine(image, 2.0, 0.0, 0.0, 0.0, "reflect")
    both = [moved, affine_mask(mask, 2.0, 0.0, 0.0, 0.0, "reflect")]
    assert torch.equal(same, inside) and (black[:, ~inside[0]] < moved[:, ~inside[0]]).all()
    torch.testing.assert_close(moved[:, 5:11, 7:17], black[:, 5:11, 7:17], atol=1e-6, rtol=0)
    for one in both:  # the content lies in rows 4 to 11 and columns 6 to 17
        torch.testing.assert_close(one[:, :4], one[:, 4:8].flip(1), atol=1e-6, rtol=0)
        torch.testing.assert_close(one[:, :, 18:], one[:, :, 12:18].flip(2), atol=1e-6, rtol=0)


def test_the_fill_leaves_the_placement_alone() -> None:
    for seed in range(6):
        moved = [
            draw_variant(smooth_picture(24, 36), None, Augmentation(("affine",), 1.0, 15.0, fill), generator(seed))
            for fill in ("black", "reflect")
        ]
        assert torch.equal(moved[0][2], moved[1][2]) and not torch.equal(moved[0][0], moved[1][0])


@pytest.mark.parametrize(
    ("setting", "side", "limit"),
    [
        ("auto", 128, 3.0),  # SDXL at 1024: the published range to the last bit
        ("auto", 64, 1.5),  # SD1.5 at 512, SDXL at 512
        ("auto", 96, 2.25),
        ("auto", 16, 1.0),  # the embedded model
        ("auto", 42, 1.0),
        ("auto", 256, 3.0),  # not beyond what was published
        (3.0, 16, 3.0),
        (1.2, 128, 1.2),
    ],
)
def test_auto_leaves_as_many_latents_of_a_picture_as_the_published_zoom_on_sdxl(
    setting: float | Literal["auto"], side: int, limit: float
) -> None:
    assert zoom_limit(setting, side) == limit
    if setting == "auto" and 43 <= side <= 128:
        assert side / limit == pytest.approx(128 / 3)


@pytest.mark.parametrize("kinds", [("affine",), ("flip",), ("color",), ("affine", "flip", "color"), ()])
def test_every_kind_takes_the_same_number_of_draws(kinds):
    source = generator("aligned")
    draw_variant(smooth_picture(8, 8), None, Augmentation(kinds, 3.0, 15.0), source)
    other = generator("aligned")
    torch.rand(8, generator=other, dtype=torch.float64)
    assert torch.equal(source.get_state(), other.get_state())


def test_adding_a_kind_leaves_the_placement_alone():
    for seed in range(6):
        assert torch.equal(draw(("affine",), seed=seed)[2], draw(("affine", "flip", "color"), seed=seed)[2])


def test_flip_mirrors_half_of_the_variants_with_their_masks():
    image, mask = smooth_picture(12, 18), torch.rand(1, 12, 18, generator=generator("mask"))
    flipped = 0
    for seed in range(80):
        moved, moved_mask, inside = draw(("flip",), mask=mask, seed=seed, image=image)
        assert inside.all() and moved_mask is not None
        mirrored = torch.equal(moved, image.flip(-1))
        assert mirrored or torch.equal(moved, image)
        assert torch.equal(moved_mask, mask.flip(-1) if mirrored else mask)
        flipped += mirrored
    assert 28 <= flipped <= 52


def test_color_changes_the_picture_mildly_and_neither_the_mask_nor_the_fill():
    image, mask = smooth_picture(24, 36) * 0.5, torch.rand(1, 24, 36, generator=generator("mask"))
    for seed in range(10):
        moved, moved_mask, _ = draw(("color",), mask=mask, seed=seed, image=image)
        assert moved_mask is mask
        assert 0.005 < (moved - image).abs().mean() < 0.4 and moved.min() >= -1 and moved.max() <= 1
        both, _, inside = draw(("affine", "color"), seed=seed, image=image)
        far = torch.nn.functional.max_pool2d(inside.float()[None], 5, 1, 2)[0] == 0
        assert (both[:, far[0]] == -1).all()


def test_color_changes_brightness_contrast_and_saturation_by_up_to_a_fifth():
    grey, white = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    halves = torch.cat([grey[..., :4] - 0.2, grey[..., 4:] + 0.2], dim=-1)
    red = grey + torch.tensor([0.3, -0.1, -0.1])[:, None, None]
    factors: dict[str, list[float]] = {"brightness": [], "contrast": [], "saturation": []}
    for seed in range(200):
        plain, edge, tinted = ((draw(("color",), image=one, seed=seed)[0] + 1) / 2 for one in (grey, halves, red))
        bright = plain.mean().item() / 0.5
        factors["brightness"].append(bright)
        contrast = (edge[..., -1].mean() - edge[..., 0].mean()).item() / 0.2 / bright
        factors["contrast"].append(contrast)
        factors["saturation"].append((tinted[0] - tinted[1]).mean().item() / 0.2 / bright / contrast)
        assert draw(("color",), image=white, seed=seed)[0].max() <= 1
    for name, values in factors.items():
        assert min(values) > 0.8 - 1e-4 and max(values) < 1.2 + 1e-4, name
        assert min(values) < 0.83 and max(values) > 1.17 and abs(sum(values) / 200 - 1) < 0.03, name


def test_no_kind_leaves_the_picture_alone():
    moved, mask, inside = draw(())
    assert torch.equal(moved, smooth_picture(24, 36)) and mask is None and inside.all()

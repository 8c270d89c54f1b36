"""The overfitting indicator against a brute-force one, by hand, and by properties."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_train.families.levels import even_levels, levels_of, timestep_at
from apt_train.training.indicator import OverfitIndicator
from tests.tiny import scaled_linear_schedule

few = settings(max_examples=30)
Steps = list[list[tuple[int, float, float]]]  # per optimizer step: (timestep, prior loss, tuned loss)

losses = st.floats(0, 2, width=32)
samples = st.tuples(st.integers(0, 999), losses, losses)
steps_of = st.lists(st.lists(samples, min_size=1, max_size=6), max_size=8)


def tensors(step: list[tuple[int, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    timesteps, prior, tuned = zip(*step, strict=True)
    return torch.tensor(timesteps), torch.tensor(prior), torch.tensor(tuned)


def fed(steps: Steps, **settings: Any) -> OverfitIndicator:
    indicator = OverfitIndicator(**settings)
    for step in steps:
        indicator.update(*tensors(step))
    return indicator


def brute_force(
    steps: Steps, bins: int = 10, ema: float = 0.1, temperature: float = 1000.0, total: int = 1000
) -> list[float]:
    averages: list[tuple[float, float] | None] = [None] * bins
    for step in steps:
        for b in range(bins):
            inside = [(p, q) for t, p, q in step if int(t * bins / total) == b]
            if not inside:
                continue
            mean = [math.fsum(pair[i] for pair in inside) / len(inside) for i in (0, 1)]
            old = averages[b]
            new = mean if old is None else [(1 - ema) * o + ema * m for o, m in zip(old, mean, strict=True)]
            averages[b] = (new[0], new[1])
    return [0.0 if a is None else min(1.0, 1 - math.exp(-temperature * max(0.0, a[0] - a[1]))) for a in averages]


def near(indicator: OverfitIndicator, expected: list[float]) -> bool:
    return torch.allclose(indicator.gamma, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


# By hand


def test_a_bin_is_at_zero_until_its_first_value_and_starts_from_it() -> None:
    indicator = OverfitIndicator()
    assert indicator.gamma.tolist() == [0.0] * 10 and indicator.gamma.dtype == torch.float64
    indicator.update(torch.tensor([350]), torch.tensor([0.251]), torch.tensor([0.25]))
    expected = [0.0] * 10
    expected[3] = 1 - math.exp(-1)  # the first gap of 0.001 counts fully, not by a tenth
    assert indicator.gamma.tolist() == pytest.approx(expected, rel=1e-4)


def test_later_values_move_the_average_by_a_tenth() -> None:
    indicator = fed([[(0, 0.5, 0.499)], [(50, 0.7, 0.7)]])
    assert indicator.gamma[0].item() == pytest.approx(1 - math.exp(-1000 * 0.9 * 0.001), rel=1e-3)


def test_samples_of_one_bin_in_one_step_count_once_by_their_mean() -> None:
    start = [[(120, 0.004, 0.004)]]
    three = fed([*start, [(100, 0.004, 0.001), (150, 0.004, 0.002), (199, 0.004, 0.003)]])
    once = fed([*start, [(100, 0.004, 0.002)]])
    one_by_one = fed([*start, [(100, 0.004, 0.001)], [(150, 0.004, 0.002)], [(199, 0.004, 0.003)]])
    torch.testing.assert_close(three.gamma, once.gamma, rtol=1e-6, atol=1e-9)
    assert one_by_one.gamma[1] > three.gamma[1] + 0.1


def test_a_tuned_loss_above_the_priors_gives_zero_not_a_negative_gamma() -> None:
    assert fed([[(5, 0.1, 5.0)]]).gamma.tolist() == [0.0] * 10


def test_a_huge_gap_gives_one_at_most() -> None:
    assert fed([[(5, 1e6, 0.0)]]).gamma[0] == 1.0


@pytest.mark.parametrize(
    ("timesteps", "gap_of", "published"),
    [
        (0, (0.0016, 0.0032), (0.80, 0.96)),
        (300, (0.002, 0.0039), (0.86, 0.98)),
        (600, (0.00105, 0.00177), (0.65, 0.83)),
    ],
)
def test_published_curves_are_reached_at_their_loss_gaps(
    timesteps: int, gap_of: tuple[float, float], published: tuple[float, float]
) -> None:
    """SDXL's gaps of 0.001 to 0.004 give the gammas of the paper's figure at T = 1000, steps 500 and 2000."""
    early, late = (fed([[(timesteps, 0.1 + gap, 0.1)]]).gamma_at(torch.tensor([timesteps])).item() for gap in gap_of)
    assert (early, late) == pytest.approx(published, abs=0.015)


@pytest.mark.parametrize(("bins", "total"), [(10, 1000), (3, 1000), (7, 25), (10, 7), (1, 1000), (13, 999)])
def test_bins_divide_the_schedule_also_where_it_does_not_go_up(bins: int, total: int) -> None:
    indicator = OverfitIndicator(bins=bins, num_timesteps=total)
    timesteps = torch.arange(total)
    found = indicator.bin_of(timesteps)
    assert found.tolist() == [t * bins // total for t in range(total)]
    assert int(found.min()) == 0 and int(found.max()) == (bins * (total - 1)) // total < bins
    counts = torch.bincount(found)
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1


def test_bins_are_equal_parts_of_the_noise_level() -> None:
    levels = (torch.arange(1000, dtype=torch.float64) / 999).sqrt()  # a family whose timesteps crowd at the noisy end
    indicator = OverfitIndicator(bins=4, levels=levels)
    found = indicator.bin_of(torch.arange(1000))
    assert torch.bincount(found).tolist() == [63, 187, 312, 438]  # below 0.25 squared times 999, and so on
    indicator.update(torch.tensor([62]), torch.tensor([0.2]), torch.tensor([0.1]))
    assert indicator.gamma.tolist()[0] > 0.9 and indicator.gamma.tolist()[1:] == [0, 0, 0]


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 64, 333, 999, 1000])
def test_stable_diffusions_levels_give_the_published_bins(bins: int) -> None:
    indicator = OverfitIndicator(bins=bins, levels=levels_of(scaled_linear_schedule()))
    assert indicator.bin_of(torch.arange(1000)).tolist() == [t * bins // 1000 for t in range(1000)]


def test_a_level_finds_its_timestep() -> None:
    even = even_levels(1000)
    assert [timestep_at(even, t / 1000) for t in (0, 1, 7, 300, 999)] == [0, 1, 7, 300, 999]
    assert [timestep_at(even, level) for level in (0.0503, 0.999999, 1.0)] == [50, 999, 999]
    late = (torch.arange(1000, dtype=torch.float64) + 1) / 1000  # pure noise has a timestep, and the clean picture none
    assert [timestep_at(late, level) for level in (0.0, 0.001, 0.5, 1.0)] == [0, 0, 499, 999]


def test_gamma_at_answers_per_sample() -> None:
    indicator = fed([[(0, 0.5, 0.499), (999, 0.5, 0.49)]])
    found = indicator.gamma_at(torch.tensor([999, 0, 50, 500]))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([indicator.gamma[b].item() for b in (9, 0, 0, 5)])


# Within an optimizer step


def test_gamma_is_provisional_before_the_commit() -> None:
    indicator = fed([[(0, 0.5, 0.5)]])
    indicator.observe(*tensors([(10, 0.5, 0.48)]))
    first = indicator.gamma[0].item()
    assert first == pytest.approx(1 - math.exp(-1000 * 0.1 * 0.02), rel=1e-4)
    indicator.observe(*tensors([(20, 0.5, 0.5)]))  # the mean of this step's samples, not two moves
    assert indicator.gamma[0].item() == pytest.approx(1 - math.exp(-1000 * 0.1 * 0.01), rel=1e-4)
    provisional = indicator.gamma
    indicator.commit()
    assert torch.equal(indicator.gamma, provisional)


def test_an_unseen_bin_answers_with_its_first_mean_before_the_commit() -> None:
    indicator = OverfitIndicator()
    indicator.observe(*tensors([(700, 0.5, 0.499)]))
    assert indicator.gamma[7].item() == pytest.approx(1 - math.exp(-1), rel=1e-3)
    assert (indicator.gamma[:7] == 0).all()


def test_discard_forgets_what_was_not_committed() -> None:
    indicator = fed([[(0, 0.5, 0.499)]])
    before = indicator.gamma
    indicator.observe(*tensors([(0, 0.9, 0.1), (900, 0.9, 0.1)]))
    assert not torch.equal(indicator.gamma, before)
    indicator.discard()
    assert torch.equal(indicator.gamma, before)
    indicator.commit()
    assert torch.equal(indicator.gamma, before)


def test_a_step_without_samples_changes_nothing() -> None:
    indicator = fed([[(0, 0.5, 0.499)]])
    before = indicator.state_dict()
    indicator.commit()
    assert indicator.state_dict() == before


def test_losses_keep_no_graph() -> None:
    loss = torch.tensor([0.2], requires_grad=True)
    indicator = OverfitIndicator()
    indicator.update(torch.tensor([0]), loss * 2, loss)
    assert not indicator.gamma.requires_grad


# By properties


@few
@given(steps_of, st.sampled_from([1, 3, 10]), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([1.0, 100.0, 1000.0]))
def test_equals_the_brute_force_one(steps: Steps, bins: int, ema: float, temperature: float) -> None:
    assert near(
        fed(steps, bins=bins, ema=ema, temperature=temperature),
        brute_force(steps, bins=bins, ema=ema, temperature=temperature),
    )


@few
@given(steps_of)
def test_a_batch_of_four_equals_four_observed_parts(steps: Steps) -> None:
    whole, parts = OverfitIndicator(), OverfitIndicator()
    for step in steps:
        whole.update(*tensors(step))
        for sample in step:
            parts.observe(*tensors([sample]))
        parts.commit()
        torch.testing.assert_close(whole.gamma, parts.gamma, rtol=1e-9, atol=1e-12)


@few
@given(steps_of, st.sampled_from([1000.0, "auto"]))
def test_gamma_stays_in_its_range(steps: Steps, temperature: float | str) -> None:
    gamma = fed(steps, temperature=temperature).gamma
    assert ((gamma >= 0) & (gamma <= 1)).all()


@few
@given(steps_of.filter(bool), losses)
def test_gamma_grows_with_the_gap(steps: Steps, more: float) -> None:
    wider = [[(t, p + more, q) for t, p, q in step] for step in steps]
    assert (fed(wider).gamma >= fed(steps).gamma - 1e-9).all()


@few
@given(steps_of, steps_of)
def test_the_state_survives_json_exactly(before: Steps, after: Steps) -> None:
    one = fed(before)
    two = OverfitIndicator()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in after:
        one.update(*tensors(step))
        two.update(*tensors(step))
    assert torch.equal(one.gamma, two.gamma) and one.state_dict() == two.state_dict()


def test_a_state_of_another_number_of_bins_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="bins is 10, .* 4"):
        OverfitIndicator(bins=10).load_state_dict(OverfitIndicator(bins=4).state_dict())


# The automatic temperature


@few
@given(steps_of, st.sampled_from([0.125, 0.5, 4.0, 1024.0]))
def test_auto_does_not_depend_on_the_scale_of_the_loss(steps: Steps, scale: float) -> None:
    scaled = [[(t, scale * (p + 0.01), scale * (q + 0.01)) for t, p, q in step] for step in steps]
    plain = [[(t, p + 0.01, q + 0.01) for t, p, q in step] for step in steps]
    torch.testing.assert_close(
        fed(scaled, temperature="auto").gamma, fed(plain, temperature="auto").gamma, rtol=1e-4, atol=1e-5
    )


def test_auto_reads_the_gap_relative_to_the_prior() -> None:
    gamma = fed([[(0, 0.2, 0.18), (150, 0.2, 0.0), (250, 0.0, 0.0)]], temperature="auto").gamma
    assert gamma[0].item() == pytest.approx(1 - math.exp(-5 * 0.1), rel=1e-4)
    assert gamma[1].item() == pytest.approx(1 - math.exp(-5), rel=1e-4)
    assert gamma[2].item() == 0.0  # a prior without error: no gap, no division by zero

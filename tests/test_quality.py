"""The quality benchmark: subjects, judge, probes, distances, curves, and a unit from training to its JSON."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_train.adapter import Adapter, RankByTimestep, add_adapter
from apt_train.config import AdapterConfig
from apt_train.errors import InputError
from apt_train.families.network import TextInput
from apt_train.sample.sampler import from_pictures
from apt_train.text.conditioning import Conditioner
from benchmarks.quality import report, run
from benchmarks.quality.curves import Curve, Mean, at_level, at_step, curves_of, differences
from benchmarks.quality.distances import Projection, frechet_distance, precision_and_recall, set_distances
from benchmarks.quality.grid import PRIOR, Grid, Unit, Variant, merged
from benchmarks.quality.grids import GRIDS, METHODS
from benchmarks.quality.pictures import prior_pictures
from benchmarks.quality.probe import BINS, by_bin, errors, probes_of
from benchmarks.quality.report import write_report
from benchmarks.quality.store import missing, read_units, write_unit
from benchmarks.quality.subjects import Subject
from benchmarks.quality.tables import apart_table, by_subject, level_differences, level_table, short_table
from benchmarks.quality.task import Task
from benchmarks.quality.unit import ranks_by_timestep, run_unit, to
from benchmarks.quality.world_judge import WorldJudge, look_alikes
from benchmarks.quality.world_subjects import LOOKS, TUNING, VERDICT, world_subject
from benchmarks.quality.world_task import world_task
from benchmarks.world import draw

NEAR, FAR = TUNING[0], TUNING[5]


pytestmark = pytest.mark.usefixtures("one_thread")


# -- subjects


def test_no_constant_is_chosen_on_a_subject_of_the_verdict() -> None:
    looks = {look.scene.look for look in TUNING}
    assert len(TUNING) == len(VERDICT) == 6 and not looks & {look.scene.look for look in VERDICT}
    assert [look.far for look in TUNING] == [look.far for look in VERDICT] == [False] * 3 + [True] * 3


def test_the_world_holds_no_subject() -> None:
    scenes = [draw.world_scene(0, index) for index in range(4000)]
    assert not {look.scene.look for look in TUNING + VERDICT} & {scene.look for scene in scenes}
    assert not {scene.pattern for scene in scenes} & set(draw.NOVEL_PATTERNS)


@pytest.mark.parametrize("look", VERDICT, ids=lambda look: look.name)
def test_a_subject_is_shown_on_one_ground_and_asked_for_on_the_others(look: Any) -> None:
    subject = world_subject(look.name)
    assert len(subject.training) == 4 and len(subject.images.images) == 4
    assert {item.caption for item in subject.training} == {f"a photo of {{subject}} on {look.ground}"}
    named = [prompt for prompt in subject.prompts if prompt.kind == "subject"]
    assert len(named) == 64 and not any(prompt.expect["ground"] == look.ground for prompt in named)
    assert not any(look.ground in item.caption for item in subject.heldout)
    assert all("{subject}" not in prompt.text for prompt in subject.prompts if prompt.kind != "subject")


def test_prompts_about_other_things_are_the_same_for_all_subjects_of_a_class() -> None:
    toys = [look for look in LOOKS.values() if look.shape == "toy"][:2]
    first, second = (
        [prompt.text for prompt in world_subject(look.name).prompts if prompt.kind == "other"] for look in toys
    )
    assert first == second and len(set(first)) > 100
    assert not any("toy" in text for text in first), "their own class has prompts of its own"


# -- judge


@pytest.mark.parametrize("look", [NEAR, FAR], ids=lambda look: look.name)
def test_the_judge_tells_a_subject_from_its_look_alikes(look: Any) -> None:
    subject = world_subject(look.name, share=0.25)
    prompts = [prompt for prompt in subject.prompts if prompt.kind == "subject"][:8]
    placed = [replace(look.scene, **prompt.expect) for prompt in prompts]
    true = [Image.fromarray(draw.render(scene, np.random.default_rng(i))) for i, scene in enumerate(placed)]
    other = look_alikes(look)[1]
    false = [
        Image.fromarray(draw.render(replace(other.scene, **prompt.expect), np.random.default_rng(i)))
        for i, prompt in enumerate(prompts)
    ]
    judge, klass = WorldJudge(subject), [prompt for prompt in subject.prompts if prompt.kind == "class"][:1]
    right = judge.score([*true, true[0]], [*prompts, *klass], [*true, true[0]])
    wrong = judge.score([*false, false[0]], [*prompts, *klass], [*true, true[0]])
    assert right["recognised"] >= 0.75 and wrong["recognised"] <= 0.25
    assert right["fidelity"] > wrong["fidelity"] + 0.1
    assert right["aligned"] == wrong["aligned"] == 1.0
    assert right["kept"] == right["recognised"] and right["leak"] == 1.0 and wrong["leak"] == 0.0


def test_a_training_picture_counts_as_copied() -> None:
    subject = world_subject(NEAR.name, share=0.1)
    judge = WorldJudge(subject)

    copies = judge.copied(from_pictures([item.picture for item in subject.training]))
    elsewhere = judge.copied(from_pictures([item.picture for item in subject.heldout]))
    assert copies == pytest.approx(np.ones(4), abs=1e-5) and elsewhere.max() < 0.95


# -- distances


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4000, 3))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first + [2.0, 0, 0], first) == pytest.approx(4.0, rel=1e-6)
    # the same mean, deviation 3 against 1 in one direction: (3 - 1)^2
    assert frechet_distance(first * [3.0, 1, 1], first) == pytest.approx(4.0, rel=0.1)


def test_precision_falls_with_strangers_and_recall_with_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 20
    both = np.concatenate([left, right])
    again = np.concatenate([rng.normal(size=(100, 4)), rng.normal(size=(100, 4)) + 20])
    half = rng.normal(size=(200, 4))
    strangers = np.concatenate([again[:100], rng.normal(size=(100, 4)) - 60])
    assert min(precision_and_recall(again, both)) > 0.9
    precision, recall = precision_and_recall(half, both)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)
    assert precision_and_recall(strangers, both)[0] == pytest.approx(0.5, abs=0.05)


def test_ten_samples_a_dimension() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(400, 50)) * np.linspace(3, 0.1, 50)
    assert Projection.fit(reference, samples=160).dimensions == 16
    found = set_distances(rng.normal(size=(60, 50)), reference)
    assert found["dimensions"] == 6 and 0 < found["explained"] < 1 and found["fid"] > 0


# -- curves


def curve(variant: str, fidelity: list[float], cost: list[float], subject: str = "s", seed: int = 0) -> Curve:
    steps = np.array([0, 100, 200, 400])
    return Curve(
        subject, "near", seed, variant, steps, {"fidelity": np.array(fidelity), "fid": np.array(cost, dtype=float)}
    )


def test_equal_fidelity_is_where_a_variant_first_gets_there() -> None:
    base = curve("dreambooth", [0.1, 0.3, 0.5, 0.4], [0, 1, 3, 5])
    slow = curve("apt", [0.1, 0.2, 0.3, 0.5], [0, 1, 2, 2])
    never = curve("dco", [0.1, 0.1, 0.2, 0.2], [0, 0, 0, 0])
    curves = [base, slow, never]
    # three quarters of the way from .1 to dreambooth's best, .5: .4
    assert at_level(curves, "dreambooth", "step")["s", 0] == pytest.approx(150)
    assert at_level(curves, "dreambooth", "fid")["s", 0] == pytest.approx(2)
    assert at_level(curves, "apt", "step")["s", 0] == pytest.approx(300)
    assert at_level(curves, "apt", "fid")["s", 0] == pytest.approx(2)
    assert np.isnan(at_level(curves, "dco", "fid")["s", 0])
    assert at_step(curves, "apt", "fid", 400) == {("s", 0): 2.0}


def test_a_baseline_that_learned_nothing_gives_no_level() -> None:
    base = curve("dreambooth", [0.3, 0.2, 0.1, 0.2], [0, 1, 3, 5])
    assert np.isnan(at_level([base, curve("apt", [0.3, 0.4, 0.5, 0.6], [0, 0, 0, 0])], "apt", "fid")["s", 0])


def test_where_not_all_get_there_nothing_is_bold() -> None:
    base = [curve("dreambooth", [0.1, 0.3, 0.5, 0.4], [0, 1, 3, 5], subject=s) for s in "ab"]
    both = [curve("apt", [0.1, 0.2, 0.3, 0.5], [0, 0, 0, 0], subject=s) for s in "ab"]
    one = [both[0], curve("apt", [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0], subject="b")]
    assert "| apt | 2 of 2 |" in level_table([*base, *both]) and "**-2.0" in level_table([*base, *both])
    assert "| apt | 1 of 2 |" in level_table([*base, *one]) and "**" not in level_table([*base, *one])


def test_differences_are_paired() -> None:
    ours = {("a", 0): 1.0, ("b", 0): 11.0, ("c", 0): float("nan")}
    theirs = {("a", 0): 0.0, ("b", 0): 10.0, ("c", 0): 5.0, ("d", 0): 7.0}
    assert differences(ours, theirs) == {("a", 0): 1.0, ("b", 0): 1.0}
    found = Mean.of([*differences(ours, theirs).values()])
    assert (found.mean, found.half, found.n) == (1.0, 0.0, 2) and found.clear


def test_seeds_are_pooled_after_pairing() -> None:
    """A seed where the variant never came as far must not count for the baseline alone."""
    base = [
        curve("dreambooth", [0.1, 0.3, 0.5, 0.4], [0, fid, fid, fid], subject=subject, seed=seed)
        for subject, seed, fid in (("a", 0, 4), ("a", 1, 100), ("b", 0, 4))
    ]
    ours = [
        curve("apt", fidelity, [0, 3, 3, 3], subject=subject, seed=seed)
        for subject, seed, fidelity in (
            ("a", 0, [0.1, 0.3, 0.5, 0.4]), ("a", 1, [0.1, 0.1, 0.1, 0.1]), ("b", 0, [0.1, 0.3, 0.5, 0.4])
        )
    ]  # fmt: skip
    found = level_differences([*base, *ours], "apt", ["fid"], pooled=by_subject)["fid"]
    assert (found.mean, found.n) == (-1.0, 2)
    (row,) = [line for line in level_table([*base, *ours], pooled=by_subject).splitlines() if line.startswith("| apt")]
    assert "| 2 of 2 |" in row and "-1.0 ±0.0" in row and "**" not in row, "one run of the three did not come there"
    (row,) = [line for line in level_table([*base, *ours[::2]], pooled=by_subject).splitlines() if "| apt" in line]
    assert "**-1.0 ±0.0**" in row


def test_the_first_pages_table_counts_who_came_as_far() -> None:
    base = [curve("dreambooth", [0.1, 0.3, 0.5, 0.4], [0, 1, 3, 5], subject=s) for s in "ab"]
    ours = [curve("apt", [0.1, 0.2, 0.3, last], [0, 7, 7, 9], subject=s) for s, last in (("a", 0.47), ("b", 0.45))]
    table = short_table([], [*base, *ours], 400).splitlines()
    assert table[0] == "| variant | reached 90% | subject fidelity | FID |"
    assert table[2].startswith("| dreambooth | 2 of 2 | 0.400 ") and table[3].startswith("| apt | 1 of 2 | 0.460 ")


def test_differences_at_one_step_are_bold_where_each_run_has_its_pair() -> None:
    base = [curve("dco", [0.1, 0.3, 0.5, 0.4], [0, 1, 3, 5], subject=s) for s in "abc"]
    ours = [curve("apt", [0.1, 0.2, 0.3, 0.6], [0, 7, 7, 9], subject=s) for s in "ab"]
    table = apart_table([*base, *ours], 400, "dco").splitlines()
    assert table[0].startswith("| variant - dco | n | subject fidelity |") and len(table) == 3
    assert table[2].startswith("| apt | 2 of 2 | **+0.200 ±0.000** | **+4.0")
    third = curve("apt", [0.1, 0.2, 0.3, 0.6], [0, 7, 7, 9], subject="d")
    row = apart_table([*base, *ours, third], 400, "dco").splitlines()[2]
    assert row.startswith("| apt | 2 of 3 | +0.200 ±0.000 | +4.0") and "**" not in row


def test_a_table_may_compare_with_another_variant() -> None:
    base = [curve("dreambooth", [0.1, 0.3, 0.5, 0.4], [0, 1, 3, 5], subject=s) for s in "ab"]
    others = [curve("dco", [0.1, 0.2, 0.3, 0.5], [0, 1, 1, 1], subject=s) for s in "ab"]
    ours = [curve("apt", [0.1, 0.2, 0.3, 0.5], [0, 7, 7, 7], subject=s) for s in "ab"]
    table = level_table([*base, *others, *ours], against="dco")
    with pytest.raises(KeyError):
        level_table([*base, *ours], against="dco")
    assert "| variant - dco |" in table and "| dreambooth | 2 of 2 |" in table and "| dco |" not in table
    assert "**+6.0" in next(line for line in table.splitlines() if line.startswith("| apt |"))


def test_the_interval_is_students() -> None:
    found = Mean.of([1.0, 2.0, 3.0, float("nan")])
    assert found.n == 3 and found.mean == 2.0
    assert found.half == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-5)  # t(.975, 2 degrees of freedom)
    assert Mean.of([]).n == 0 and not Mean.of([5.0]).clear


# -- the grids


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_can_be_run(name: str) -> None:
    grid, task = GRIDS[name], world_task()
    assert set(grid.subjects) <= set(LOOKS) and PRIOR in grid.variants
    assert not set(grid.subjects) & {look.name for look in (TUNING if name in ("verdict", "beside") else VERDICT)}
    for variant in grid.variants.values():
        config = variant.config(merged(task.recipe, grid.recipe or {}), "toy", 0)
        every = config.output.snapshot_every
        assert all(step % every == 0 and step <= config.steps for step in (*grid.probe_at, *grid.sample_at))


def test_a_variant_may_tell_the_trainer_other_words() -> None:
    plain = Variant({"method": "dreambooth"}).config({}, "toy", 3)
    other = Variant({"class_word": "red {class_word}", "init_word": "{class_word}"}).config({}, "toy", 3)
    assert (plain.class_word, plain.resolved_init_word, plain.seed) == ("toy", "toy", 3)
    assert (other.class_word, other.resolved_init_word) == ("red toy", "toy")


def test_the_verdict_has_every_method_and_enough_of_each() -> None:
    grid = GRIDS["verdict"]
    baselines = {"prior", "dreambooth", "dreambooth+preservation", "dco", "t-lora"}
    less = {f"apt without aa, {part}" for part in ("augmentation", "weight", "rs")}
    apart = {"apt", "apt without aa"}
    assert baselines | apart | less == set(grid.variants) and len(grid.subjects) >= 6 and len(grid.seeds) >= 3
    runs = Counter(unit.variant for unit in grid.units())
    assert {runs[name] for name in baselines | apart} == {18} and {runs[name] for name in less} == {6}
    recipes = {
        name: (c.optimizer, c.adapter.rank, c.steps)
        for name, c in ((name, v.config(world_task().recipe, "toy", 0)) for name, v in METHODS.items())
    }
    assert len(set(recipes.values())) == 1, "methods differ in the loss alone"


# -- probes and units, on the embedded model


def small_subject(name: str) -> Subject:
    """Two pictures of each kind, as every probe sees each ten times and more."""
    whole = world_subject(name, share=0.07)
    return replace(whole, training=whole.training[:2], heldout=whole.heldout[:2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return replace(
        world_task(),
        subject=small_subject,
        sampling_steps=1,
        cache=tmp_path_factory.mktemp("cache"),
        loss_repeats=1,
        drift_prompts=2,
        preservation_pictures=2,
    )


def test_the_untrained_model_has_the_priors_losses_and_no_drift(small: Task) -> None:
    components, subject = small.components, small.subject(NEAR.name)
    to(components, "cpu")
    conditioner = Conditioner(components.text_encoders, None, class_word="toy", name="x")
    probes = probes_of(small, components, conditioner, subject)
    assert set(probes) == {"training", "augmented", "heldout", "subject", "class", "other"}
    seen, drawn, total = probes["heldout"], probes["other"], components.schedule.num_timesteps
    said = [item.caption for item in subject.heldout]
    assert seen.captions == [caption for caption in said for _ in range(BINS)] and len(set(said)) > 1
    assert (seen.timesteps * BINS // total).tolist() == [*range(BINS)] * len(subject.heldout)
    (one, again), (other, _) = seen.noisy[:2], seen.noisy[BINS : BINS + 2]  # two pictures with little noise
    assert (one - again).norm() < (one - other).norm()
    texts = len(drawn.captions) // BINS
    assert drawn.captions == drawn.captions[:texts] * BINS
    assert drawn.timesteps.tolist() == [at for at in components.schedule.sampling_timesteps(BINS) for _ in range(texts)]
    add_adapter(components.unet, AdapterConfig(rank=2, alpha=2.0), seed=0)
    try:
        for name in ("class", "other", "training"):
            found = errors(components, conditioner, probes[name], tuned=False)
            assert torch.allclose(found, probes[name].prior, atol=1e-6)
        for name, parameter in components.unet.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        assert not torch.allclose(errors(components, conditioner, probes["training"], tuned=False), found, atol=1e-3)
        moved = errors(components, conditioner, probes["other"], tuned=False)
        per_bin = by_bin(moved, probes["other"].timesteps, components.schedule.num_timesteps)
        assert len(per_bin) == BINS and min(per_bin) > 1e-5
    finally:
        Adapter(components.unet).remove()


GRID = Grid(
    subjects=(NEAR.name,),
    seeds=(0,),
    variants={
        PRIOR: Variant({}),
        "dreambooth": Variant({"method": "dreambooth", "apt": {"watch_indicator": True}}),
        "preservation": Variant({"method": "dreambooth", "apt": {"watch_indicator": True}}, preservation=True),
    },
    probe_at=(2, 4),
    sample_at=(4,),
    recipe={"steps": 4, "output": {"snapshot_every": 2}, "adapter": {"rank": 2}},
)


@pytest.fixture(scope="module")
def results(small: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for unit in missing(folder, GRID):
        write_unit(folder, GRID, unit, run_unit(small, GRID, unit))
    return folder


def test_a_unit_says_what_was_measured(results: Path) -> None:
    assert missing(results, GRID) == []
    found = {unit["unit"]["variant"]: unit for unit in read_units(results, GRID)}
    unit = found["dreambooth"]
    assert [snapshot["step"] for snapshot in unit["snapshots"]] == [2, 4]
    assert "score" not in unit["snapshots"][0] and unit["snapshots"][0]["drift"]["other"][0] > 0
    assert np.shape(unit["snapshots"][1]["losses"]["heldout"]) == (BINS,)
    assert (unit["unit"]["subject"], unit["unit"]["group"]) == (NEAR.name, world_subject(NEAR.name).group)
    assert unit["unit"]["space"] == WorldJudge.space and len(unit["unit"]["pictures"]) == 16
    assert [part["step"] for part in unit["motion"]] == [4]
    assert unit["motion"][0]["moved"] > 0 and unit["motion"][0]["gradient"] > 0
    assert found["prior"]["snapshots"][0]["true"]["score"]["fidelity"] > 0.7
    assert found["preservation"]["snapshots"][1]["losses"] != unit["snapshots"][1]["losses"]
    text = json.dumps(unit)
    assert "NaN" not in text and len(text) < 8000
    assert all(path.stat().st_size < 8000 for path in results.iterdir())


@pytest.fixture(scope="module")
def alone(small: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The unit that reads most of what is kept of the prior, run again with nothing kept."""
    task = replace(small, cache=tmp_path_factory.mktemp("empty"))
    return json.loads(json.dumps(run_unit(task, GRID, Unit(NEAR.name, 0, "preservation"))))


def test_a_unit_is_the_same_when_run_again(alone: dict[str, Any], results: Path) -> None:
    before = next(u for u in read_units(results, GRID) if u["unit"]["variant"] == "preservation")
    assert {"made": before["made"], **alone} == before


def test_a_rounded_base_is_trained_on_and_not_measured(small: Task, results: Path) -> None:
    rounded = Variant({**GRID.variants["dreambooth"].settings, "base_storage": "fp8"})
    grid = replace(GRID, variants={**GRID.variants, "fp8": rounded})
    weight = small.components.unet.get_parameter("mid_block.resnets.0.conv1.weight").clone()
    last = run_unit(small, grid, Unit(NEAR.name, 0, "fp8"))["snapshots"][-1]
    full = next(u for u in read_units(results, GRID) if u["unit"]["variant"] == "dreambooth")["snapshots"][-1]
    assert torch.equal(weight, small.components.unet.get_parameter("mid_block.resnets.0.conv1.weight"))
    assert last["losses"] != full["losses"]
    assert np.allclose(last["losses"]["heldout"], full["losses"]["heldout"], rtol=0.02)  # four steps from one prior


def test_only_missing_units_are_run(results: Path, tmp_path: Path) -> None:
    for path in results.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{NEAR.name}-seed0-preservation.json").unlink()
    assert [unit.variant for unit in missing(tmp_path, GRID)] == ["preservation"]


def test_a_unit_of_other_settings_does_not_count(results: Path, tmp_path: Path) -> None:
    for path in results.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stronger = Variant({"method": "dreambooth", "apt": {"watch_indicator": True}, "optimizer": {"learning_rate": 1.0}})
    for changed in (
        replace(GRID, variants={**GRID.variants, "dreambooth": stronger}),
        replace(GRID, share=0.5),
        replace(GRID, sample_at=(2, 4)),
        replace(GRID, task="another checkpoint"),
    ):
        with pytest.raises(InputError, match="other settings"):
            missing(tmp_path, changed)


def test_the_priors_pictures_are_never_drawn_with_a_lora_on(small: Task) -> None:
    components = small.components
    conditioner = Conditioner(components.text_encoders, None, class_word="toy", name="x")
    add_adapter(components.unet, AdapterConfig(rank=2, alpha=2.0), seed=0)
    try:
        with pytest.raises(InputError):
            prior_pictures(small, components, conditioner, ["a photo of a toy"], seed=0)
    finally:
        Adapter(components.unet).remove()


def test_a_unit_needs_no_other_unit(alone: dict[str, Any], results: Path) -> None:
    """With nothing kept of the prior it finds the same figures: what it keeps was drawn without its LoRA."""
    units = {u["unit"]["variant"]: u["snapshots"] for u in read_units(results, GRID)}
    assert alone["snapshots"] == units["preservation"] != units["dreambooth"]


def test_t_lora_masks_its_ranks_when_it_is_measured(small: Task) -> None:
    components = small.components
    to(components, "cpu")
    ranks = RankByTimestep(8, 1, components.levels)
    adapter = add_adapter(components.unet, AdapterConfig(rank=8, alpha=8.0), seed=0, ranks=ranks)
    try:
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        noisy, text = torch.randn(2, 4, 16, 16), TextInput(torch.randn(2, 77, 128))

        def ask(*timesteps: int) -> torch.Tensor:
            with torch.no_grad():
                times = torch.tensor(timesteps).squeeze()
                return components.network.predict(components.unet, noisy, times, text, torch.float32)

        plain = ask(0), ask(999)
        with ranks_by_timestep(components, adapter):
            masked, both = (ask(0), ask(999)), ask(0, 999)
        assert torch.allclose(both, torch.cat([masked[0][:1], masked[1][1:]]), atol=1e-5)
        assert torch.allclose(masked[0], plain[0]) and not torch.allclose(masked[1], plain[1], atol=1e-3)
        assert torch.equal(ask(999), plain[1]), "nothing stays on the UNet"
    finally:
        adapter.remove()


def _fails(task: Task, grid: Grid, unit: Unit) -> dict[str, Any]:
    if unit.variant == "dreambooth":
        raise RuntimeError("diverged")
    return {"unit": {"subject": unit.subject, "variant": unit.variant, "seed": unit.seed}}


class _Inline:
    """A pool of this process, which needs no model loaded a second time."""

    def __init__(self, workers: int, mp_context: Any) -> None:
        self.workers = workers

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_unit_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_unit", _fails)
    monkeypatch.setattr(run, "ProcessPoolExecutor", _Inline)
    monkeypatch.setattr(run, "_TASKS", {})
    with pytest.raises(InputError, match="1 units failed .*dreambooth"):
        run.run_grid(world_task, GRID, tmp_path, 2)
    assert "diverged" in capsys.readouterr().err
    assert [unit.variant for unit in missing(tmp_path, GRID)] == ["dreambooth"]


def test_curves_begin_at_the_prior(results: Path) -> None:
    for found in curves_of(read_units(results, GRID)):
        assert found.steps.tolist() == [0, 2, 4] and found.values["drift_other"][0] == 0
        assert found.values["memorised"][0] == 0 and np.isnan(found.values["fidelity"][1])


def test_the_report_states_how_many_units_it_stands_on(results: Path, tmp_path: Path) -> None:
    for path in results.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = write_report("small", GRID, tmp_path)
    assert "3 of 3 units" in text and "prior, other seeds" in text and "true pictures" in text
    assert json.loads((tmp_path / "summary.json").read_text())["at_step"]["dreambooth"]["4"]["fid"]["n"] == 1
    assert Image.open(tmp_path / "figure.png").width > 800


def test_the_figure_draws_no_row_that_lacks_runs(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables count each row's runs; a figure cannot, so a mean over fewer would mislead there."""
    of_all = curves_of(read_units(results, GRID))
    assert {curve.variant for curve in of_all} == {"dreambooth", "preservation"}
    another = [replace(curve, seed=1) for curve in of_all if curve.variant == "preservation"]
    drawn: list[str] = []

    def figure(curves: list[Curve], *_: Any) -> Image.Image:
        drawn.extend(sorted(curve.variant for curve in curves))
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(report, "cost_of_fidelity", figure)
    monkeypatch.setattr(report, "read_units", lambda folder, grid: read_units(results, GRID))
    for found, expected in (
        (of_all, ["dreambooth", "preservation"]),
        ([*of_all, *another], ["preservation", "preservation"]),
    ):
        drawn.clear()
        monkeypatch.setattr(report, "curves_of", lambda units, found=found: found)
        write_report("small", GRID, tmp_path)
        assert drawn == expected

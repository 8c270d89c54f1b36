"""The check-up: numbers move as they must, a LoRA comes back as the run drew it, and the rule scales with the LoRA.

Not here: names and formulas of files (`test_lora_formats`), the command (`test_inspect`), the node (`tests/host`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from apt_train.config import TrainConfig
from apt_train.data.buckets import prepare
from apt_train.errors import InputError
from apt_train.events import TrainResult
from apt_train.families.components import Components
from apt_train.lora_check.asked import Asked
from apt_train.lora_check.blocks import Block
from apt_train.lora_check.check_up import check_up
from apt_train.lora_check.findings import AtStrength, CheckUp
from apt_train.lora_check.gain import Gain, gain_of
from apt_train.lora_check.lora_file import LoraFile, sorted_lora
from apt_train.lora_check.numbers import as_dict, as_json
from apt_train.lora_check.placing import Placement
from apt_train.lora_check.recommend import STEP, recommended
from apt_train.lora_check.sheet import sheet, sheet_figure
from apt_train.lora_check.subject import Subject
from apt_train.lora_check.verdict import paragraphs
from apt_train.lora_check.with_lora import lora_ready
from apt_train.photo_check.preflight import preflight
from apt_train.sample.apply import personalized
from apt_train.sample.sampler import Drawing, Sampler
from apt_train.text.captions import caption_for
from tests.lora_files import attention_paths, kohya, random_layers, scaled
from tests.synthetic_check_up import made_up
from tests.tiny import tiny_components, tiny_unet_without_decoder_attention
from tests.toy_flow import toy_flow_components
from tests.training import pictures, quick_config, run

pytestmark = pytest.mark.usefixtures("no_report")

CPU = torch.device("cpu")
TOY = TrainConfig(class_word="toy")
QUICK = Asked(
    strengths=(1.0,), unrelated=("a painting",), resolution=32, draws=1, bins=4, rows=16, sample_steps=0
)  # fmt: skip
SOME = replace(QUICK, strengths=(0.4, 1.0, 1.2))


@pytest.fixture(scope="module", autouse=True)
def short_trajectories() -> Iterator[None]:
    """Two points on each instead of five, for time's sake."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apt_train.sample.trajectories.STEPS", 4)
        yield


@pytest.fixture(scope="module")
def trained() -> TrainResult:
    """A plain LoRA that knows its pictures, with plain words."""
    settings = {"method": "dreambooth", "identifier_mode": "word", "watch_drift": False, "rank": 4}
    return run(images=pictures(1), steps=40, learning_rate=2e-2, resolution=32, **settings)


@pytest.fixture(scope="module")
def own(trained: TrainResult) -> CheckUp:
    """That LoRA on its pictures, with samples; nothing changes it."""
    return looked_over(trained.lora, replace(SOME, sample_steps=1))


def looked_over(lora: dict[str, Tensor] | LoraFile, asked: Asked = QUICK, **more: Any) -> CheckUp:
    file = lora if isinstance(lora, LoraFile) else sorted_lora(lora, "mine")
    subject = more.pop("subject", None) or Subject.of(file, "toy", "toy_subject toy")
    parts = more.pop("components", None) or tiny_components()
    return check_up(parts, file, subject, replace(asked, device="cpu"), **{"images": pictures(1), **more})


# ---- numbers move as they must -----------------------------------------------------------------------------------


def test_a_lora_of_zeros_changes_nothing() -> None:
    parts = tiny_components()
    zeros = {
        name: tensor * 0 if "lora_up" in name else tensor
        for name, tensor in kohya(random_layers(parts.unet, attention_paths(parts.unet))).items()
    }
    found = looked_over(zeros, components=parts, subject=Subject("toy", "toy"), images=pictures(1, captions=["a dog"]))
    assert found.notes == ["No caption names the subject, so the trigger was only tried on the prompt."]
    for point in found.points:
        assert point.gain == Gain(0.0, 0.0, [0.0] * 4, [0.0] * 4)
        assert (point.subject, point.bare, point.unrelated, point.ratio, point.spill) == (0.0,) * 5
        assert point.alignment == pytest.approx(1, abs=1e-6) and point.context == pytest.approx(1, abs=1e-6)
    assert (found.recommendation.rule, found.recommendation.strength) == ("nothing", 1.0)
    assert {block.moved for block in found.blocks} == {0.0} and {block.used for block in found.blocks} == {0.0}
    assert "changes nothing" in paragraphs(found)[0] and "within chance" in paragraphs(found)[1]


def test_a_trained_lora_gains_on_its_pictures_and_drifts_with_its_strength(own: CheckUp) -> None:
    at_one = next(point for point in own.points if point.strength == 1)
    assert at_one.gain and at_one.gain.is_known and at_one.gain.mean > 0.02
    assert own.points[0].subject < at_one.subject < own.points[-1].subject
    assert own.recommendation.rule == "gain" and own.pictures == 1


def test_three_times_as_strong_is_used_at_a_third(trained: TrainResult, own: CheckUp) -> None:
    """The change alone counts, whatever splits it between alpha and strength."""
    thirds = tuple(strength / 3 for strength in SOME.strengths)
    thrice = looked_over(scaled(trained.lora, 3.0), replace(SOME, strengths=thirds))
    half_steps = STEP / 2 + STEP / 6  # both are rounded
    assert thrice.recommendation.strength == pytest.approx(own.recommendation.strength / 3, abs=half_steps + 0.01)
    strong, weak = thrice.points[-1], own.points[-1]
    assert (strong.strength, weak.strength) == (pytest.approx(0.4), 1.2)
    assert strong.unrelated == pytest.approx(weak.unrelated, rel=1e-3)
    assert strong.gain and weak.gain and strong.gain.mean == pytest.approx(weak.gain.mean, rel=1e-2, abs=1e-4)


def test_lower_strengths_are_tried_where_the_lowest_is_the_best(trained: TrainResult) -> None:
    thrice = looked_over(scaled(trained.lora, 3.0), replace(SOME, strengths=(0.4, 1.0)))
    assert [point.strength for point in thrice.points][-3:] == [0.2, 0.4, 1.0]
    assert thrice.recommendation.strength < 1


def test_without_pictures_the_spill_alone_holds_back(trained: TrainResult) -> None:
    found = looked_over(scaled(trained.lora, 8.0), SOME, images=None)
    assert all(point.gain is None for point in found.points) and found.pictures == 0
    assert found.recommendation.strength < 0.5 and found.recommendation.overfitted
    assert "Without the training pictures" in paragraphs(found)[-1]
    weak = looked_over(scaled(trained.lora, 0.01), images=None).recommendation
    assert (weak.rule, weak.strength) == ("usual", 1.0)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_at_full_strength_it_draws_what_the_run_would(kind: str) -> None:
    """With its learned word; and the model comes back to the bit."""
    parts = tiny_components(kind)
    before = {name: tensor.clone() for name, tensor in parts.unet.state_dict().items()}
    settings: dict[str, Any] = {"learning_rate": 5e-2, "watch_drift": False}
    result = run(parts, **settings)
    file = sorted_lora(result.lora, "mine")
    subject = Subject.of(file, "toy", result.trigger, result.embeddings)
    with lora_ready(parts, file, CPU, "fp32") as ready, ready.at(1.0):
        ours = drawn(parts, subject.conditioner(parts))
    with personalized(parts, result.lora, result.embeddings, quick_config(**settings)) as (conditioner, _):
        assert torch.equal(ours, ours) and (drawn(parts, conditioner) - ours).abs().max() <= 2
    after = parts.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def drawn(parts: Components, conditioner: Any) -> Tensor:
    text, nothing = conditioner.encode(["a photo of {subject}"], tuned=True), conditioner.encode([""], tuned=False)
    sampler = Sampler(parts, (64, 64), "cpu", torch.float32)
    (picture,) = sampler.draw(text, nothing, Drawing(seed=0, steps=3, guidance=3.0))
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()


def test_a_lora_on_the_text_encoder_moves_every_prompt() -> None:
    parts = tiny_components()
    encoder = parts.text_encoders[0].model
    tower = "" if hasattr(encoder, "encoder") else "text_model."
    paths = [f"{tower}encoder.layers.{n}.self_attn.{end}" for n in (0, 1) for end in ("q_proj", "v_proj")]
    layers = {path.removeprefix(tower): pair for path, pair in random_layers(encoder, paths).items()}
    found = looked_over(kohya(layers, prefix="lora_te_text_model_"), components=parts)
    assert [block.name for block in found.blocks] == ["text encoder 1"]
    assert found.points[-1].unrelated > 0 and found.points[-1].bare > 0
    assert any("changes the text encoder too" in part for part in paragraphs(found))


def test_layers_without_a_change_are_counted_and_their_ranks_are_not() -> None:
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet), size=0.05))
    ups = [key for key in lora if key.endswith("lora_up.weight")]
    found = looked_over({**lora, **{key: lora[key] * 0 for key in ups[2:]}}, components=parts, images=None)
    assert sum(block.unchanged for block in found.blocks) == len(ups) - 2
    said = " ".join(paragraphs(found))
    assert f"Layers without any change: {len(ups) - 2} of {len(ups)}." in said
    assert "uses 4.0 on average" in said and "smaller rank" not in said


def test_a_lora_of_zeros_is_said_to_move_no_block() -> None:
    parts = tiny_components()
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)), alpha=0.0)
    said = " ".join(paragraphs(looked_over(lora, components=parts, images=None)))
    assert "It moves the block" not in said and "Of a rank" not in said


def test_changed_biases_count_as_a_block_moved() -> None:
    parts = tiny_components()
    bias = parts.unet.get_submodule("conv_out").bias
    assert isinstance(bias, Tensor)
    found = looked_over({"lora_unet_conv_out.diff_b": bias.clone() * 0.5}, components=parts, images=None)
    assert [block.moved for block in found.blocks] == [pytest.approx(0.5)] and found.blocks[0].unchanged == 0
    assert "full differences" in " ".join(paragraphs(found))


def test_a_network_without_decoder_attention_is_looked_at_elsewhere() -> None:
    parts = replace(tiny_components("sdxl"), unet=tiny_unet_without_decoder_attention().requires_grad_(False))
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    assert looked_over(lora, components=parts).points[0].alignment is not None


def test_what_the_caller_raises_ends_it_and_leaves_the_model_alone(trained: TrainResult) -> None:
    parts, calls = tiny_components(), []
    before = {name: tensor.clone() for name, tensor in parts.unet.state_dict().items()}

    class Enough(Exception):
        pass

    def busy(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 15:
            raise Enough

    with pytest.raises(Enough):
        looked_over(trained.lora, SOME, components=parts, busy=busy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.unet.state_dict().items())
    assert not parts.unet._forward_pre_hooks
    assert [done for done, total in calls if total] == list(range(16))
    assert len({total for _, total in calls if total}) == 1


def test_progress_ends_at_its_total(trained: TrainResult) -> None:
    calls: list[tuple[int, int]] = []
    asked = replace(QUICK, sample_steps=1)
    looked_over(scaled(trained.lora, 0.01), asked, images=None, busy=lambda *call: calls.append(call))
    assert calls[-1][0] + 1 == calls[-1][1]


def test_a_strength_that_is_given_twice_is_tried_once(trained: TrainResult) -> None:
    found = looked_over(trained.lora, replace(QUICK, strengths=(1.0, 0.5, 1.0)), images=None)
    tried = [point.strength for point in found.points]
    assert tried[-2:] == [0.5, 1.0] and len(set(tried)) == len(tried)


def test_a_lora_in_single_bytes_is_looked_over(trained: TrainResult, own: CheckUp) -> None:
    small = {
        key: tensor if key.endswith("alpha") else tensor.to(torch.float8_e4m3fn) for key, tensor in trained.lora.items()
    }
    found = looked_over(small)
    assert found.lora.dtype == "float8_e4m3fn"
    exact = next(point for point in own.points if point.strength == 1)
    assert found.points[-1].subject == pytest.approx(exact.subject, rel=0.3)


def test_a_change_beyond_float32s_squares_is_still_a_number() -> None:
    """On a layer that no output feels: the second encoder layer's, where the network reads the first."""
    parts = tiny_components("sdxl")
    paths = [path for path, _ in parts.text_encoders[0].model.named_modules() if path.endswith("layers.1.mlp.fc2")]
    tower = paths[0].removesuffix("encoder.layers.1.mlp.fc2")
    layers = {
        path.removeprefix(tower): pair for path, pair in random_layers(parts.text_encoders[0].model, paths).items()
    }
    lora = scaled(kohya(layers, prefix="lora_te1_text_model_"), 1e30)
    found = looked_over(lora, components=parts, images=None)
    assert found.blocks[0].moved > 1e20 and found.blocks[0].used == pytest.approx(4, abs=1)
    assert json.loads(as_json(found), parse_constant=pytest.fail)["blocks"]


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, trained: TrainResult) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("apt_train.lora_check.check_up.blocks_of", full)
    with pytest.raises(InputError, match="Out of memory: give the check-up a lower resolution"):
        looked_over(trained.lora, images=None)


def test_a_lora_of_a_flow_transformer_is_looked_over() -> None:
    parts = toy_flow_components()
    paths = [f"blocks.{n}.{end}" for n in range(3) for end in ("to_q", "to_k", "to_v", "to_out.0")]
    found = looked_over(kohya(random_layers(parts.unet, paths)), components=parts)
    assert found.points[-1].subject > 0 and found.points[-1].gain is not None and found.blocks[0].moved > 0


def test_a_strength_that_overflows_is_one_sentence(trained: TrainResult) -> None:
    with pytest.raises(InputError, match="not numbers with the LoRA at strength 1: use fp32, or a lower strength"):
        looked_over(scaled(trained.lora, 1e37), images=None)


@pytest.mark.parametrize(("resolution", "multiple"), [(256, 8), (512, 64)])
def test_pictures_are_cropped_as_they_were_trained_on(
    resolution: int, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By training, by the preflight and by the check-up."""
    images, parts, buckets = pictures(1, height=90, width=200), tiny_components(), list[tuple[int, int]]()

    class Enough(Exception):
        pass

    def watched(*given: Any) -> None:
        buckets.append(prepare(*given)[0].crop.bucket)
        raise Enough

    for module in ("lora_check.pictures", "training.streams"):
        monkeypatch.setattr(f"apt_train.{module}.prepare", watched)
    lora = kohya(random_layers(parts.unet, attention_paths(parts.unet)))
    with pytest.raises(Enough):
        looked_over(lora, replace(QUICK, resolution=resolution), components=parts, images=images)
    with pytest.raises(Enough):
        run(parts, images=images, resolution=resolution)
    buckets.append(preflight(images, resolution).looks[0].crop.bucket)
    assert len(set(buckets)) == 1 and all(side % multiple == 0 for side in buckets[0])


def test_samples_stand_beside_the_priors(own: CheckUp) -> None:
    assert len(own.samples) == 1 + len(own.points) and own.samples[0].tobytes() != own.samples[-1].tobytes()


def test_what_a_program_has_switched_in_torch_changes_no_number(trained: TrainResult, own: CheckUp) -> None:
    parts, images, asked = tiny_components(), pictures(1), replace(SOME, sample_steps=1)
    torch.set_default_dtype(torch.float64)
    try:
        found = looked_over(trained.lora, asked, components=parts, images=images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert as_json(found) == as_json(own)


def test_half_precision_tells_the_same(trained: TrainResult, own: CheckUp) -> None:
    rounded = looked_over(trained.lora, replace(QUICK, precision="bf16"), images=None).points[-1]
    exact = next(point for point in own.points if point.strength == 1)
    assert rounded.subject == pytest.approx(exact.subject, rel=0.3) and rounded.subject != exact.subject


# ---- the rule ----------------------------------------------------------------------------------------------------


def point(strength: float, spill: float, gain: float | None = None, error: float = 0.01) -> AtStrength:
    known = None if gain is None else Gain(gain, error, [gain] * 10, [0.5] * 10)
    return AtStrength(strength, 1.0, 0.5, 0.1, 0.1, spill, 0.5, known)


def parabola(best: float, spill: float = 0.1) -> list[AtStrength]:
    """A gain that peaks at `best`."""
    at = (0.4, 0.6, 0.8, 1.0, 1.2)
    return [point(s, spill * s * s, 0.2 * (s / best) * (2 - s / best)) for s in at]


def test_the_strength_that_predicts_the_pictures_best_is_named() -> None:
    found = recommended(parabola(0.9))
    assert (found.rule, found.strength, found.open_ended, found.below) == ("gain", 0.9, False, False)
    assert recommended(parabola(2.0)).open_ended and recommended(parabola(2.0)).strength == 1.2
    assert recommended(parabola(0.3)).below
    nothing_learned = [point(0.5, 0.3, 0.01, 0.02), point(1.0, 0.6, 0.01, 0.02)]
    assert recommended(nothing_learned).rule == "usual"


def test_however_strong_a_lora_its_strength_is_above_0() -> None:
    for spill in (1e2, 1e4, 1e6):
        found = recommended([point(0.1, spill), point(1.0, 2 * spill)])
        assert found.overfitted and found.strength == pytest.approx(0.1 / spill)


def test_an_overfitted_one_is_flagged(own: CheckUp) -> None:
    """By what it does to other prompts where it is to be used; with pictures that strength stays."""
    for spill, flagged in ((0.1, False), (4.0, True)):
        points = parabola(1.0, spill)
        changed = replace(own, bins=10, points=points, recommendation=recommended(points))
        assert changed.recommendation.strength == 1.0 and as_dict(changed)["overfitted"] == flagged
        assert changed.recommendation.gentle == (0.5 if flagged else None)
        assert ("overfitted" in paragraphs(changed)[0]) == flagged
    blind = recommended([replace(point, gain=None) for point in parabola(1.0, 4.0)])
    assert blind.overfitted and blind.strength == 0.5


def test_the_gain_is_a_share_of_the_priors_error() -> None:
    prior, tuned = torch.tensor([[2.0, 4.0], [1.0, 1.0]]).double(), torch.tensor([[1.0, 2.0], [1.0, 1.0]]).double()
    found = gain_of(prior, tuned)
    assert found and found.levels == [0.5, 0.0] and found.mean == 0.25
    assert found.gamma[0] == pytest.approx(1) and found.gamma[1] == 0
    assert found.error == pytest.approx(1.96 * (((1 / 3 - 2 / 3) ** 2 / 2) / 2) ** 0.5 / 2)
    assert gain_of(torch.zeros(10, 0), torch.zeros(10, 0)) is None


def test_of_a_single_noise_the_interval_is_not_nothing() -> None:
    """Its spread is not known, but gains that differ by noise level are no certainty."""
    prior, tuned = torch.ones(4, 1).double(), 1 - torch.tensor([[0.3], [-0.2], [0.1], [0.0]]).double()
    found = gain_of(prior, tuned)
    assert found and found.mean == pytest.approx(0.05) and not found.is_known
    assert found.error == pytest.approx(1.96 * (prior - tuned).std().item() / 2)
    one = gain_of(prior[:1], tuned[:1])
    assert one and (one.mean, one.error) == (pytest.approx(0.3), 0.0)


# ---- what is asked -----------------------------------------------------------------------------------------------


def test_the_words_come_from_the_file_where_none_are_given(trained: TrainResult) -> None:
    said = {"apt_class_word": "toy", "modelspec.trigger_phrase": "sks toy"}
    file = sorted_lora(trained.lora, "mine", said)
    assert Subject.of(file) == Subject("toy", "sks toy")
    assert Subject.of(file, "dog", "rex") == Subject("dog", "rex")
    plain = sorted_lora(trained.lora, "mine")
    assert Subject.of(plain, "dog").trigger == "dog"
    for class_word, trigger, complaint in (
        ("", "", "class_word is empty"),
        ("toy", "embedding:my_toy", "was not found"),
        ("toy", "big embedding:my_toy", "the embedding alone"),
    ):
        with pytest.raises(InputError, match=complaint):
            Subject.of(plain, class_word, trigger)


def test_captions_name_the_subject_or_stay_as_they_are() -> None:
    subject = Subject("toy", "sks toy")
    texts = ("a sks toy here", "a Toy here", "a painting", "{subject}")
    assert [subject.caption(text) for text in texts] == [
        "a {subject} here",
        "a {subject} here",
        "a painting",
        "{subject}",
    ]


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        ("sks toy", "sks on grass"), ("sks toy", "a SKS toy on grass"), ("embedding:sks_embedding", "sks on grass"),
        ("Embedding:sks", "sks on grass"), ("embedding:sks", "embedding:sks.safetensors on grass"),
        ("embedding:sks", "a toy on grass"), ("sks toy", "a thing on grass"),
    ],
)  # fmt: skip
def test_a_caption_is_read_as_training_reads_it(trigger: str, text: str) -> None:
    """Where training refuses it, it stays as it is."""
    subject = Subject("toy", trigger, {"clip_l": torch.zeros(1, 32)} if ":" in trigger else None)
    try:
        expected = caption_for(text, "", template="", name="sks", class_word="toy")
    except InputError:
        expected = text
    assert subject.caption(text) == expected


def test_words_of_a_file_cannot_steer_a_terminal(trained: TrainResult) -> None:
    said = {"apt_class_word": "to\x1b[2Jy", "modelspec.trigger_phrase": "a\nb\r"}
    subject = Subject.of(sorted_lora(trained.lora, "mine", said))
    assert (subject.class_word, subject.trigger) == ("to?[2Jy", "a b")


def test_an_embedding_of_another_model_is_refused(trained: TrainResult) -> None:
    subject = Subject("toy", "embedding:mine", {"clip_l": torch.zeros(1, 5)})
    with pytest.raises(InputError, match="no rows for this model's clip_l"):
        looked_over(trained.lora, subject=subject)


@pytest.mark.parametrize("wrong", [{"strengths": ()}, {"strengths": (-1.0,)}, {"draws": 0}, {"sample_steps": -1}])
def test_what_cannot_be_asked_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give"):
        Asked(**wrong)


def test_unrelated_prompts_that_all_name_the_class_are_refused(trained: TrainResult) -> None:
    with pytest.raises(InputError, match="names the class word"):
        looked_over(trained.lora, replace(QUICK, unrelated=("a toy",)))


# ---- what is handed out ------------------------------------------------------------------------------------------


def test_the_numbers_are_plain_json(trained: TrainResult) -> None:
    lora = {**trained.lora, "lora_unet_nowhere.lora_up.weight": torch.zeros(4, 2)}
    lora |= {"lora_unet_nowhere.lora_down.weight": torch.zeros(2, 4), "odd.key": torch.zeros(1)}
    found = looked_over(lora, images=None)
    numbers = json.loads(as_json(found))
    assert numbers["strength"] == found.recommendation.strength and len(numbers["strengths"]) == len(found.points)
    assert numbers["file"]["left_out"] == {
        "no_place": ["lora_unet_nowhere"],
        "unfit": [],
        "broken": [],
        "unread": ["odd.key"],
    }
    assert numbers["file"]["ranks"] == [4] and numbers["verdict"] == paragraphs(found)
    said = " ".join(paragraphs(found))
    assert "Not in this model, so left out: lora_unet_nowhere" in said and "odd.key" in said


def test_a_single_layer_is_no_plural() -> None:
    assert "float32 on 1 layer, rank 2, alpha 2." in " ".join(paragraphs(made_up(parabola(1.0))))


def test_a_single_picture_is_no_plural_either() -> None:
    found = made_up(parabola(2.0))
    one, two = (" ".join(paragraphs(replace(found, pictures=count))) for count in (1, 2))
    assert "predicts the picture best" in one and "less on the picture than" in one
    assert "predicts the pictures best" in two and "less on the pictures than" in two


def test_ranks_are_averaged_over_the_layers_that_change() -> None:
    """8 and 2 in three of four layers, 16 and 4 in one; a block without ranks or without a change does not count."""
    blocks = [
        Block("up 0", 4, 0.1, 8.0, 2.0, unchanged=1), Block("mid", 1, 0.1, 16.0, 4.0),
        Block("text encoder 1", 9, 0.1, None, None), Block("down 0", 5, 0.0, 4.0, None, unchanged=5),
    ]  # fmt: skip
    found = replace(made_up(parabola(1.0)), blocks=blocks)
    said = " ".join(paragraphs(found))
    assert "Of a rank of 10 it uses 2.5 on average" in said and "A smaller rank would have held it." in said
    full = replace(found, blocks=[Block("up 0", 4, 0.1, 8.0, 4.0)])
    assert "uses 4.0 on average" in " ".join(paragraphs(full))
    assert "A smaller rank" not in " ".join(paragraphs(full))


def test_different_ranks_are_named_from_the_lowest_to_the_highest() -> None:
    found = made_up(parabola(1.0))
    (one,) = found.placement.placed
    larger = replace(one, parts={"up": torch.ones(4, 3), "down": torch.ones(3, 4), "alpha": torch.tensor(0.5)})
    said = " ".join(paragraphs(replace(found, placement=Placement([one, larger], [], []))))
    assert "on 2 layers, rank 2 to 3, alpha 0.5 to 2." in said


def test_what_was_not_given_is_said_and_nothing_else() -> None:
    no_pictures, no_trigger = "Without the training pictures they cannot tell", "No trigger was given"
    whole, rows = made_up(parabola(1.0)), {"clip_l": torch.ones(1, 4)}
    for found, missing in (
        (whole, []),
        (replace(whole, pictures=0), [no_pictures]),
        (replace(whole, subject=Subject("toy", "toy")), [no_trigger]),
        (replace(whole, subject=Subject("toy", "toy", rows)), []),
    ):
        last = paragraphs(found)[-1]
        assert last.startswith("These numbers cannot see likeness")
        assert [text for text in (no_pictures, no_trigger) if text in last] == missing


def test_an_overfitted_one_is_judged_at_the_strength_it_was_made_for() -> None:
    """The one that predicts the pictures best, or without pictures the usual 1, which is then not recommended."""
    points = parabola(0.8, 4.0)
    assert "overfitted: at strength 0.8 prompts about other things change by 256%" in paragraphs(made_up(points))[0]
    blind = [replace(one, gain=None) for one in points]
    said = paragraphs(replace(made_up(blind), pictures=0))[0]
    assert said.startswith("Use it at strength 0.5.") and "overfitted: at strength 1 prompts" in said


def test_labels_of_strengths_do_not_overlap(own: CheckUp) -> None:
    strengths = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    figure = sheet_figure(replace(own, samples=[], points=[replace(own.points[0], strength=s) for s in strengths]))
    figure.canvas.draw()
    charts = [axes for axes in figure.get_axes() if axes.get_xlabel().startswith("strength (")]
    for axes in charts:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) > 3 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert len(charts) == 3


def test_long_names_stay_on_the_page(own: CheckUp) -> None:
    lora = replace(own.lora, name="n" * 250 + ".safetensors")
    long = replace(own, samples=[], lora=lora, source="s" * 250, subject=Subject("w" * 100, "t" * 5000))
    figure = sheet_figure(long)
    figure.canvas.draw()
    edge = figure.bbox.x1
    assert all(text.get_window_extent().x1 <= edge for part in figure.subfigs for text in part.texts)


def test_dollars_in_names_are_letters(own: CheckUp) -> None:
    """matplotlib would take what is between two for a formula, and fail on this one."""
    odd = replace(own, samples=[], lora=replace(own.lora, name=r"$\nothing$"), subject=Subject("$_$", r"$\frac$ toy"))
    assert sheet(odd, 900).width == 900


@pytest.mark.parametrize("has_pictures", [True, False])
def test_the_sheet_is_one_page(own: CheckUp, has_pictures: bool) -> None:
    blind = replace(own, pictures=0, samples=[], points=[replace(point, gain=None) for point in own.points])
    page = sheet(own if has_pictures else blind, 900)
    assert page.width == 900 and len(page.getcolors(1 << 24) or ()) > 100

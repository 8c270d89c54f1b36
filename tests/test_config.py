"""Settings: defaults as published, ranges with their remedy, the way to JSON and back, what makes a run's identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from typing import Any, cast, get_args, get_type_hints

import pytest

from apt_train.config import (
    METHOD_TITLES,
    AdapterConfig,
    AptConfig,
    DataConfig,
    Method,
    OptimizerConfig,
    OutputConfig,
    TrainConfig,
)
from apt_train.errors import InputError
from apt_train.settings_field import said

ALL = (AdapterConfig, AptConfig, OptimizerConfig, DataConfig, OutputConfig, TrainConfig)


def made(cls: type, **values: Any) -> Any:
    return cls(**{**({"class_word": "toy"} if cls is TrainConfig else {}), **values})


# Defaults


def test_defaults_are_the_published_recipe() -> None:
    config = TrainConfig(class_word="toy")
    apt, optimizer, adapter = config.apt, config.optimizer, config.adapter
    assert (config.method, config.steps, config.dco_beta, config.identifier_mode) == ("apt", 2000, 1000.0, "learned")
    assert (apt.bins, apt.ema, apt.temperature, apt.p_max) == (10, 0.1, 1000.0, 0.8)
    assert (apt.max_zoom, apt.max_degrees, apt.augment_variants, apt.mask_fill) == ("auto", 15.0, 32, False)
    assert (apt.dist_weight, apt.attn_weight, apt.dist_layers, apt.attn_layers) == (0.01, 0.01, "up", "up")
    assert (apt.dist_mode, apt.attn_schedule, apt.lazy_prior, apt.balance_every) == ("relative", "constant", 1, 50)
    assert apt.adaptive_augmentation and apt.adaptive_loss_weight and apt.stabilization and apt.alignment
    assert (adapter.rank, adapter.resolved_alpha, adapter.targets) == (32, 32.0, "attention")
    assert (optimizer.learning_rate, optimizer.embedding_learning_rate, optimizer.weight_decay) == (5e-5, 5e-6, 1e-4)
    assert (optimizer.beta1, optimizer.beta2, optimizer.max_grad_norm) == (0.9, 0.999, 1.0)
    assert (optimizer.batch_size, optimizer.accumulation, optimizer.lr_schedule) == (1, 1, "constant")


def test_what_is_left_empty_is_worked_out() -> None:
    config = TrainConfig(class_word="teddy  bear")
    assert config.name == "teddy_bear_subject"
    assert TrainConfig(class_word="teddy bear", identifier="zwx-1").name == "zwx-1"
    assert config.resolved_init_word == "teddy  bear"
    assert TrainConfig(class_word="toy", init_word=" plush ").resolved_init_word == "plush"
    assert AdapterConfig(rank=9).resolved_min_rank == 4
    assert AdapterConfig(rank=1).resolved_min_rank == 1
    assert AdapterConfig(rank=8, min_rank=3).resolved_min_rank == 3
    assert AdapterConfig(rank=8, alpha=2).resolved_alpha == 2.0


@pytest.mark.parametrize("cls", ALL)
def test_every_setting_has_a_help_sentence(cls: type) -> None:
    groups = {"adapter", "apt", "optimizer", "data", "output"} if cls is TrainConfig else set()
    for item in dataclasses.fields(cls):
        if item.name not in groups:
            assert said(item).help.endswith("."), item.name


@pytest.mark.parametrize("cls", ALL)
def test_the_help_of_a_number_says_what_more_of_it_does(cls: type) -> None:
    """Seeds have no more, and `balance_every` is a rhythm."""
    direction = re.compile(r"\b(higher|highest|more|lower|fewer|longer|less|larger)\b", re.IGNORECASE)
    for item in dataclasses.fields(cls):
        if "said" in item.metadata and said(item).range and item.name not in ("seed", "preview_seed", "balance_every"):
            assert direction.search(said(item).help), item.name


def test_settings_cannot_be_changed_or_given_by_position() -> None:
    plain: Any = TrainConfig(class_word="toy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.steps = 3
    with pytest.raises(TypeError):
        cast("Any", AdapterConfig)(8)


def test_reading_the_settings_loads_nothing_heavy() -> None:
    code = (
        "import sys, apt_train.config; print([m for m in ('torch', 'diffusers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Refusals: the message names the setting, the value and what to do

NAN, INF = float("nan"), float("inf")
BAD = [
    (AdapterConfig, "rank", 0),
    (AdapterConfig, "rank", -4),
    (AdapterConfig, "alpha", 0.0),
    (AdapterConfig, "alpha", NAN),
    (AdapterConfig, "alpha", INF),
    (AdapterConfig, "dropout", 1.0),
    (AdapterConfig, "dropout", -0.1),
    (AdapterConfig, "dropout", NAN),
    (AdapterConfig, "targets", "conv"),
    (AdapterConfig, "min_rank", 0),
    (AdapterConfig, "min_rank", 33),
    (AptConfig, "bins", 0),
    (AptConfig, "ema", 0.0),
    (AptConfig, "ema", 1.1),
    (AptConfig, "ema", NAN),
    (AptConfig, "temperature", 0.0),
    (AptConfig, "temperature", -1.0),
    (AptConfig, "temperature", INF),
    (AptConfig, "temperature", "hot"),
    (AptConfig, "p_max", 1.01),
    (AptConfig, "p_max", -0.1),
    (AptConfig, "p_max", NAN),
    (AptConfig, "max_zoom", 0.9),
    (AptConfig, "max_zoom", INF),
    (AptConfig, "max_zoom", "far"),
    (AptConfig, "max_zoom", 0.0),
    (AptConfig, "max_degrees", -1.0),
    (AptConfig, "max_degrees", 181.0),
    (AptConfig, "max_degrees", NAN),
    (AptConfig, "augment_kinds", ()),
    (AptConfig, "augment_kinds", ("affine", "blur")),
    (AptConfig, "augment_variants", 0),
    (AptConfig, "augment_fill", "blur"),
    (AptConfig, "dist_weight", -1.0),
    (AptConfig, "dist_weight", NAN),
    (AptConfig, "attn_weight", INF),
    (AptConfig, "dist_layers", "down"),
    (AptConfig, "attn_layers", ""),
    (AptConfig, "dist_mode", "cosine"),
    (AptConfig, "attn_schedule", "sine"),
    (AptConfig, "lazy_prior", 0),
    (AptConfig, "balance_every", -1),
    (OptimizerConfig, "learning_rate", -1e-5),
    (OptimizerConfig, "learning_rate", NAN),
    (OptimizerConfig, "learning_rate", 0.0),
    (OptimizerConfig, "embedding_learning_rate", INF),
    (OptimizerConfig, "beta1", 1.0),
    (OptimizerConfig, "beta2", -0.1),
    (OptimizerConfig, "beta2", NAN),
    (OptimizerConfig, "epsilon", 0.0),
    (OptimizerConfig, "weight_decay", -1.0),
    (OptimizerConfig, "max_grad_norm", NAN),
    (OptimizerConfig, "lr_schedule", "step"),
    (OptimizerConfig, "warmup_steps", -1),
    (OptimizerConfig, "batch_size", 0),
    (OptimizerConfig, "accumulation", 0),
    (DataConfig, "resolution", -64),
    (DataConfig, "bucket_multiple", -1),
    (DataConfig, "caption_template", "a photo"),
    (DataConfig, "prior_preservation_weight", -1.0),
    (DataConfig, "prior_preservation_weight", NAN),
    (OutputConfig, "snapshot_every", -1),
    (OutputConfig, "preview_every", -1),
    (OutputConfig, "preview_seed", -1),
    (OutputConfig, "preview_steps", 0),
    (OutputConfig, "preview_guidance", -1.0),
    (OutputConfig, "preview_guidance", NAN),
    (TrainConfig, "identifier", "my toy"),
    (TrainConfig, "identifier", "a/b"),
    (TrainConfig, "identifier", "tüy"),
    (TrainConfig, "identifier", "a.b"),
    (TrainConfig, "init_word", "{subject}"),
    (TrainConfig, "identifier_mode", "both"),
    (TrainConfig, "method", "lora"),
    (TrainConfig, "steps", 0),
    (TrainConfig, "steps", -1),
    (TrainConfig, "seed", -1),
    (TrainConfig, "dco_beta", 0.0),
    (TrainConfig, "dco_beta", NAN),
    (TrainConfig, "precision", "int8"),
]


@pytest.mark.parametrize(("cls", "name", "value"), BAD, ids=lambda part: getattr(part, "__name__", repr(part)))
def test_a_value_out_of_range_is_refused_in_one_sentence(cls: type, name: str, value: Any) -> None:
    with pytest.raises(InputError) as refusal:
        made(cls, **{name: value})
    message = str(refusal.value)
    assert message.startswith(f"{name} is "), message
    if value not in ((), ""):
        shown = value[-1] if isinstance(value, tuple) else value
        assert str(shown) in message, message
    assert re.search(r": \w.*\.$", message) and "\n" not in message, message  # a remedy after the colon


NUMBERS = [
    (cls, item.name)
    for cls in ALL
    for item in dataclasses.fields(cls)
    if {int, float} & {get_type_hints(cls)[item.name], *get_args(get_type_hints(cls)[item.name])}
]
BEYOND = [10**30, -(10**30), 10**5000, float("1e400"), -INF, NAN, 1e300, -1, True, "3", [], {}, "1e99"]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_no_number_is_without_an_end(cls: type, name: str) -> None:
    """What a 64-bit number or a 32-bit float could not hold never reaches a library, also out of JSON."""
    for value in BEYOND:
        with pytest.raises(InputError, match=f"^{name} is ") as refusal:
            made(cls, **{name: value})
        assert len(str(refusal.value)) < 300


def test_every_seed_of_64_bits_is_taken_and_none_beyond() -> None:
    assert TrainConfig(class_word="toy", seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(InputError, match="seed is 18446744073709551616: give a whole number from 0 to 1844"):
        TrainConfig(class_word="toy", seed=2**64)


@pytest.mark.parametrize("text", ["a\0toy", "\udcff toy"])
@pytest.mark.parametrize(
    ("cls", "name"), [(TrainConfig, "class_word"), (DataConfig, "class_caption"), (OutputConfig, "preview_prompts")]
)
def test_what_is_no_text_is_refused(cls: type, name: str, text: str) -> None:
    """Bytes of the command line that are no letters arrive as halves of letters, which no tokenizer takes."""
    with pytest.raises(InputError, match=f"^{name} is .*: leave out what is no letter"):
        made(cls, **{name: (text,) if cls is OutputConfig else text})


@pytest.mark.parametrize("word", ["", "  ", "\n"])
def test_an_empty_class_word_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(InputError, match="class_word is empty: .*toy"):
        TrainConfig(class_word=word)


@pytest.mark.parametrize("word", ["{subject}", "a {class_word}", "Embedding:toy"])
def test_what_stands_for_the_subject_is_no_class_word(word: str) -> None:
    with pytest.raises(InputError, match="class_word is .*: write plain words"):
        TrainConfig(class_word=word)


def test_a_class_word_that_cannot_name_files_asks_for_a_name() -> None:
    with pytest.raises(InputError, match="identifier is empty and class_word is 'café'.*give a name"):
        TrainConfig(class_word="café")
    assert TrainConfig(class_word="café", identifier="cup").name == "cup"


def test_dco_needs_the_prior_at_every_step() -> None:
    with pytest.raises(InputError, match="lazy_prior is 2: .*1"):
        TrainConfig(class_word="toy", method="dco", apt=AptConfig(lazy_prior=2))
    assert TrainConfig(class_word="toy", method="apt", apt=AptConfig(lazy_prior=2)).apt.lazy_prior == 2


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (AptConfig, {"temperature": "auto"}),
        (AptConfig, {"temperature": 1}),
        (AptConfig, {"ema": 1}),
        (AptConfig, {"p_max": 0}),
        (AptConfig, {"max_zoom": 1}),
        (AptConfig, {"max_zoom": "auto"}),
        (AptConfig, {"dist_weight": 0}),
        (AptConfig, {"balance_every": 0}),
        (AptConfig, {"augment_kinds": ("flip", "color", "affine")}),
        (AdapterConfig, {"dropout": 0.99}),
        (AdapterConfig, {"rank": 4, "min_rank": 4}),
        (OptimizerConfig, {"max_grad_norm": 0}),
        (OptimizerConfig, {"beta1": 0}),
        (OutputConfig, {"snapshot_every": 0}),
        (TrainConfig, {"identifier": "A-z_9"}),
        (TrainConfig, {"steps": 1}),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(cls: type, values: dict[str, Any]) -> None:
    config = made(cls, **values)
    assert {name: getattr(config, name) for name in values} == values


# To JSON and back

CHANGED = TrainConfig(
    class_word="teddy bear",
    identifier="zwx",
    method="tlora",
    steps=7,
    seed=3,
    precision="bf16",
    gradient_checkpointing=True,
    adapter=AdapterConfig(rank=4, alpha=2.5, min_rank=1, targets="attention+ff"),
    apt=AptConfig(temperature="auto", augment_kinds=("affine", "flip"), bins=3),
    optimizer=OptimizerConfig(lr_schedule="cosine", learning_rate=1e-3),
    output=OutputConfig(preview_prompts=("a {subject}", "snow"), preview_every=2),
)


@pytest.mark.parametrize("config", [TrainConfig(class_word="toy"), CHANGED])
def test_json_gives_the_same_settings_back(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_a_dict_leaves_out_has_its_default() -> None:
    config = TrainConfig.from_dict({"class_word": "toy", "apt": {"bins": 4}})
    assert config == TrainConfig(class_word="toy", apt=AptConfig(bins=4))


@pytest.mark.parametrize("values", [{"stepz": 3}, {"apt": {"gama": 1}}])
def test_an_unknown_setting_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stepz|gama"):
        TrainConfig.from_dict({"class_word": "toy", **values})


def test_a_list_counts_as_the_tuple_that_it_stands_for() -> None:
    given: Any = ["affine", "flip"]
    listed = AptConfig(augment_kinds=given)
    assert listed == AptConfig(augment_kinds=("affine", "flip")) and hash(listed)
    with pytest.raises(InputError, match="augment_kinds is 'affine': give a list of texts"):
        AptConfig(augment_kinds=cast("Any", "affine"))


def test_a_name_that_is_no_text_is_refused_too() -> None:
    with pytest.raises(InputError, match="no setting named 5"):
        TrainConfig.from_dict({"class_word": "toy", 5: 1, "stepz": 1})


def test_a_bad_value_in_a_dict_is_refused_too() -> None:
    with pytest.raises(InputError, match="bins is 0"):
        TrainConfig.from_dict({"class_word": "toy", "apt": {"bins": 0}})


# Identity

SAME = [
    {"steps": 3000},
    {"identifier": "abc"},
    {"output": OutputConfig(snapshot_every=1, preview_every=5, preview_seed=4)},
    {"apt": AptConfig(balance_every=3)},
    {"adapter": AdapterConfig(alpha=32.0)},
    {"init_word": "toy"},
    {"gradient_checkpointing": True},
    {"apt": AptConfig(watch_indicator=True)},
    {"dco_beta": 2.0},  # read by DCO alone
    {"adapter": AdapterConfig(min_rank=2)},  # by T-LoRA alone
]
OTHER = [
    {"class_word": "dog"},
    {"seed": 1},
    {"method": "dreambooth"},
    {"init_word": "plush"},
    {"identifier_mode": "word"},
    {"adapter": AdapterConfig(rank=16)},
    {"adapter": AdapterConfig(alpha=1.0)},
    {"apt": AptConfig(temperature="auto")},
    {"apt": AptConfig(max_zoom=3.0)},
    {"apt": AptConfig(augment_fill="reflect")},
    {"apt": AptConfig(lazy_prior=2)},
    {"optimizer": OptimizerConfig(accumulation=2)},
    {"precision": "bf16"},
    {"optimizer": OptimizerConfig(learning_rate=1e-4)},
    {"data": DataConfig(resolution=512)},
    {"method": "dco", "dco_beta": 2.0},
    {"method": "tlora", "adapter": AdapterConfig(min_rank=2)},
    {"apt": AptConfig(dist_weight=2.0)},
]


def test_the_identity_of_earlier_runs_stays_what_it_was() -> None:
    """They could not be resumed otherwise: a new setting is left out of it at its default."""
    earlier = TrainConfig(class_word="toy", apt=AptConfig(max_zoom=3.0))  # the default they were written with
    text = json.dumps(earlier.identity(), sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "ddd25cf9c6063a5577a844f2cf2d3d783302309a6f8249f22816b8aee8870a46"
    )


@pytest.mark.parametrize("change", SAME, ids=str)
def test_what_changes_no_weight_is_not_part_of_a_runs_identity(change: dict[str, Any]) -> None:
    base = TrainConfig(class_word="toy")
    assert dataclasses.replace(base, **change).identity() == base.identity()


def test_apts_settings_count_under_apt_alone() -> None:
    one = TrainConfig(class_word="toy", method="dreambooth")
    other = TrainConfig(class_word="toy", method="dreambooth", apt=AptConfig(dist_weight=2.0, p_max=0.1))
    assert one.identity() == other.identity()


@pytest.mark.parametrize("change", OTHER, ids=str)
def test_what_changes_weights_is(change: dict[str, Any]) -> None:
    base = TrainConfig(class_word="toy")
    assert dataclasses.replace(base, **change).identity() != base.identity()


def test_the_trigger_word_counts_where_the_text_encoder_reads_it() -> None:
    one, two = (TrainConfig(class_word="toy", identifier_mode="word", identifier=name) for name in ("abc", "zwx"))
    assert one.identity() != two.identity()
    # and the init word does not, where nothing is initialised
    assert dataclasses.replace(one, init_word="plush").identity() == one.identity()


@pytest.mark.parametrize(
    ("values", "reads"),
    [
        ({}, False),
        ({"optimizer": OptimizerConfig(lr_schedule="constant_with_warmup", warmup_steps=5)}, False),
        ({"optimizer": OptimizerConfig(lr_schedule="cosine")}, True),
        ({"optimizer": OptimizerConfig(lr_schedule="linear")}, True),
        ({"apt": AptConfig(attn_schedule="linear")}, True),
        ({"apt": AptConfig(attn_schedule="indicator")}, False),
        ({"apt": AptConfig(attn_schedule="linear", alignment=False)}, False),
        ({"apt": AptConfig(attn_schedule="linear"), "method": "dreambooth"}, False),
    ],
)
def test_steps_count_where_a_schedule_reads_the_total(values: dict[str, Any], reads: bool) -> None:
    one, two = (TrainConfig(class_word="toy", steps=steps, **values) for steps in (100, 200))
    assert one.reads_total_steps is reads
    assert (one.identity() != two.identity()) is reads


def test_every_method_has_a_title() -> None:
    assert tuple(METHOD_TITLES) == get_args(Method)

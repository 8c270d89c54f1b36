"""A setting is said in one place: option, widget, tables, checks and identity come of it; widgets keep their places.

Not here: what each setting may be (`test_config`), nor that its widget reaches a run (`tests/host/test_options.py`).
"""

from __future__ import annotations

import argparse
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

import pytest

from apt_train.config import TrainConfig
from apt_train.console.options import add_config_options
from apt_train.errors import InputError
from apt_train.settings_field import (
    Range,
    Widget,
    built,
    check_values,
    fields_of,
    group,
    groups_of,
    identifying,
    said,
    setting,
    types_of,
)

from .help_pages import with_settings
from .node_texts import Slot, node_modules, nodes
from .options_page import options_text

# ---- a new setting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Balloon:
    """Settings that nobody knows but this file."""

    lift: float = setting(
        1.5, "How strongly it rises.", Range(0, 100), unit="newtons", standing="paper", widget=Widget(most=9, step=0.5)
    )
    reach: float | Literal["auto"] = setting("auto", "How far, or auto: to the end.", Range(above=0, high=9))
    height: float | Literal["auto"] = setting(
        "auto", "How high, or auto: to the top.", Range(2, 1000), since=1, widget=Widget(most=10, step=0.5)
    )
    knots: int | None = setting(None, "Knots in the string. Empty: as many as fit.", Range(1, 8))
    colours: tuple[Literal["red", "blue"], ...] = setting(("red",), "Its colours.", methods=("sail",))
    helium: bool | None = setting(None, "Its gas. Empty: helium where there is some.", moves_weights=False)
    shape: Literal["round", "long"] = setting("round", "Its shape.", widget=Widget(heading="looks", advanced=True))
    lines: tuple[str, ...] = setting((), "What is printed on it.")
    sinks: bool = setting(False, "Whether it sinks.", more="No balloon_free sky.")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class Toys:
    """In the place of `TrainConfig`."""

    owner: str = setting(MISSING, "Whose they are.")
    balloon: Balloon = group(Balloon, title="balloons", heading="air")


def widgets() -> dict[str, Slot]:
    with node_modules("settings", "options") as (settings, options):
        return {one.name: options.option_widget(one) for one in settings.every_setting(Toys)}


def shown_as(slot: Slot) -> tuple[Any, ...]:
    limits = [slot.more[name] for name in ("min", "max", "step") if name in slot.more]
    return slot.kind, slot.more["default"], *limits, *slot.more.get("options", ())


def test_a_new_setting_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_config_options(parser, Toys)
    given = parser.parse_args("--owner me --lift 2 --reach auto --colours red blue --no-helium --shape long".split())
    expected = {"owner": "me", "lift": 2.0, "reach": "auto", "colours": ["red", "blue"], "helium": False}
    assert vars(given) == expected | {"shape": "long"}
    assert "How strongly it rises. (default: 1.5)" in parser.format_help() and "balloons:" in parser.format_help()


def test_a_new_setting_is_a_widget_of_its_type_and_range() -> None:
    assert {name: shown_as(slot) for name, slot in widgets().items()} == {
        "owner": ("String", ""),
        "lift": ("Float", 1.5, 0, 9, 0.5),
        "reach": ("String", "auto"),
        "height": ("Float", 0.0, 0, 10, 0.5),  # 0 is the word
        "knots": ("Int", 0, 0, 8, 1),
        "colours": ("Combo", "red", "red", "blue", "red+blue"),
        "helium": ("Combo", "auto", "auto", "on", "off"),
        "shape": ("Combo", "round", "round", "long"),
        "lines": ("String", ""),
        "sinks": ("Boolean", False),
    }


def test_a_widget_says_what_its_setting_says() -> None:
    """Where an empty setting is a 0 on a node, or a word is, the help says so; headings and the switch likewise."""
    found = widgets()
    assert found["lift"].tooltip == "How strongly it rises." and found["lift"].name == "air · lift"
    assert found["knots"].tooltip == "Knots in the string. 0: as many as fit."
    assert found["height"].tooltip == "How high, or 0: to the top."
    assert found["reach"].tooltip == "How far, or auto: to the end."
    assert found["helium"].tooltip == "Its gas. auto: helium where there is some."
    assert found["shape"].name == "looks · shape"
    assert [name for name, slot in found.items() if slot.more.get("advanced")] == ["shape"]
    assert list(found)[-1] == "height"  # of a later round: behind all that stood there before


@pytest.mark.parametrize(
    ("name", "shown", "meant"),
    [
        ("knots", 0, None),
        ("knots", 3, 3),
        ("height", 0, "auto"),
        ("height", 2.5, 2.5),
        ("reach", " AUTO ", "auto"),
        ("reach", "2.5", 2.5),
        ("colours", "red+blue", ("red", "blue")),
        ("colours", ["blue"], ("blue",)),
        ("colours", "", ("red",)),
        ("helium", "off", False),
        ("helium", "auto", None),
        ("lines", "one\n\n two ", ("one", "two")),
        ("sinks", True, True),
    ],
)
def test_a_widget_gives_what_the_setting_takes(name: str, shown: Any, meant: Any) -> None:
    with node_modules("settings") as (settings,):
        found = settings.value_of(settings.Setting(name, Toys), shown)
    assert found == meant and type(found) is type(meant)
    Balloon(**{name: found})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lift": 101.0}, "lift is 101.0: give a number from 0 to 100."),
        ({"lift": "much"}, "lift is 'much': give a number."),
        ({"reach": "far"}, "reach is 'far': give a number above 0, or auto."),
        ({"height": "far"}, "height is 'far': give a number of at least 2, or auto."),
        ({"height": 1.0}, "height is 1.0: give a number from 2 to 1000."),
        ({"knots": 9}, "knots is 9: give a whole number from 1 to 8."),
        ({"colours": ["red", "pink"]}, "colours is 'pink': choose from red, blue."),
        ({"shape": "flat"}, "shape is 'flat': choose one of round, long."),
        ({"lines": ["a\0"]}, "lines is 'a\\x00': leave out what is no letter."),
        ({"lines": ["a"] * 101}, "lines is 101 texts: give 100 or fewer."),
        ({"lines": ["a" * 10_001]}, "lines is 10001 letters long: write some sentences."),
    ],
)
def test_a_new_setting_is_checked(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refusal:
        built(Toys, {"owner": "me", "balloon": values})
    assert str(refusal.value) == sentence


def test_a_new_setting_has_its_row_in_every_table() -> None:
    parser = argparse.ArgumentParser()
    add_config_options(parser, Toys)
    assert "| <code>--lift</code> | 1.5 | How strongly it rises. |" in options_text(parser)
    slots = [widgets()[name] for name in ("lift", "sinks", "reach", "colours")]
    page = "### air\n\n| setting |\n|---|\n| `lift` | an older row |\n\nMore.\n\n## Output\n"
    lines = with_settings(page, slots, Toys).splitlines()
    assert lines[4:10] == [
        "| `lift` | 1.5 | 0 to 9 newtons | How strongly it rises. | paper |",
        "| `sinks` | off | on, off | Whether it sinks. No `balloon_free` sky. | ours |",
        "| `reach` | auto | above 0 and at most 9, or `auto` | How far, or auto: to the end. | ours |",
        "| `colours` | red | `red`, `blue`, `red+blue` | Its colours. | ours |",
        "",
        "More.",
    ]


def test_a_new_setting_counts_where_it_changes_weights() -> None:
    """Those of a later round are left out at their default, as runs begun before do not name them."""
    toys = Toys(owner="me", balloon=Balloon(helium=True))
    kept = {name: getattr(toys.balloon, name) for name in ("lift", "reach", "knots", "shape", "lines", "sinks")}
    assert identifying(toys, "kite") == {"owner": "me", "balloon": kept}
    assert identifying(toys, "sail") == {"owner": "me", "balloon": {**kept, "colours": ("red",)}}
    high = Toys(owner="me", balloon=Balloon(height=3.0))
    assert identifying(high, "kite")["balloon"]["height"] == 3.0


# ---- the settings there are --------------------------------------------------------------------------------------

# A saved workflow holds values by place: append to these, never move or take out.
TRAIN_WIDGETS = (
    "model clip vae images subject class_word steps rank learning_rate resolution batch_size caption_template method "
    "seed resume captions masks options preset sample_prompts"
).split()
METHOD_WIDGETS = (
    "adaptive_augmentation adaptive_loss_weight bins ema temperature p_max max_zoom max_degrees augment_kinds "
    "augment_variants mask_fill stabilization dist_weight dist_layers dist_mode alignment attn_weight "
    "attn_layers attn_schedule watch_indicator balance_every augment_fill options"
).split()
ADAPTER_WIDGETS = (
    "alpha dropout targets min_rank kind embedding_learning_rate beta1 beta2 epsilon weight_decay max_grad_norm "
    "lr_schedule warmup_steps accumulation optimizer precision gradient_checkpointing lazy_prior memory base_storage "
    "compile_blocks channels_last options"
).split()
DATA_WIDGETS = (
    "identifier_mode init_word dco_beta bucket_multiple class_caption prior_preservation_weight "
    "mask_counts alpha_masks background options prior_images"
).split()
SAMPLE_WIDGETS = (
    "snapshot_every preview_every preview_prompts preview_steps preview_guidance preview_seed watch_drift "
    "drift_prompts unseen_prompt stop options"
).split()
IN_PLACE = {  # of the one options node, of which no workflow is made any more
    "APTMethodOptions": METHOD_WIDGETS,
    "APTAdapterOptions": ADAPTER_WIDGETS,
    "APTDataOptions": DATA_WIDGETS,
    "APTSampleOptions": SAMPLE_WIDGETS,
}
OPTIONS_WIDGETS = (
    "identifier_mode init_word dco_beta adaptive_augmentation adaptive_loss_weight bins ema temperature p_max max_zoom "
    "max_degrees augment_kinds augment_variants mask_fill stabilization dist_weight dist_layers dist_mode alignment "
    "attn_weight attn_layers attn_schedule watch_indicator balance_every alpha dropout targets min_rank "
    "embedding_learning_rate beta1 beta2 epsilon weight_decay max_grad_norm lr_schedule warmup_steps accumulation "
    "bucket_multiple class_caption prior_preservation_weight precision gradient_checkpointing lazy_prior "
    "snapshot_every preview_every preview_prompts preview_steps preview_guidance preview_seed mask_counts alpha_masks "
    "background watch_drift drift_prompts optimizer augment_fill kind "
    "prior_images"
).split()


KEPT = {"APTTrain": TRAIN_WIDGETS, "APTTrainOptions": OPTIONS_WIDGETS, **IN_PLACE}


@pytest.mark.parametrize("node", KEPT)
def test_widgets_keep_their_places(node: str) -> None:
    """`options` and `prior_images` are wires and have no value: they may stand last."""
    assert [slot.id for slot in nodes()[node].inputs] == KEPT[node]


def test_every_setting_is_on_one_of_the_nodes() -> None:
    """On one of the four options nodes, or the training node's own."""
    shown = [*TRAIN_WIDGETS, *(name for names in IN_PLACE.values() for name in names)]
    homes = [TrainConfig, *(types_of(TrainConfig)[name] for name in groups_of(TrainConfig))]
    names = [name for home in homes for name in fields_of(home)]
    assert {name: shown.count(name) for name in names} == {name: 1 for name in names} | {
        "identifier": 0
    }  # as `subject`
    assert len(names) == sum(len(fields(home)) for home in homes) - len(groups_of(TrainConfig))


def test_the_node_of_earlier_versions_has_its_widgets_and_no_new_ones() -> None:
    """All that the four have, but for settings of later rounds."""
    later = {item.name for home in (TrainConfig, *map(types_of(TrainConfig).get, groups_of(TrainConfig)))
             for item in fields_of(home).values() if said(item).since > 4}  # fmt: skip
    four = {name for names in IN_PLACE.values() for name in names} - {"options"}
    assert set(OPTIONS_WIDGETS) == four - later and nodes()["APTTrainOptions"].deprecated
    assert [node_id for node_id, node in nodes().items() if node.deprecated] == ["APTTrainOptions"]


def test_a_widget_shows_no_number_that_its_setting_refuses() -> None:
    """But 0 where it means something else."""
    with node_modules("settings") as (settings,):
        for one in settings.every_setting():
            if one.is_number:
                least, most, _ = settings.number_range(one)
                aside = least == 0 and settings.value_of(one, 0) != 0
                assert (aside or one.said.range.holds(least)) and one.said.range.holds(most), one.name


def test_the_types_of_a_class_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """That took half of the pack's import, and nearly all of what a page of the editor waits for."""
    seen: list[object] = []
    real = typing.get_type_hints
    monkeypatch.setattr(typing, "get_type_hints", lambda cls, **more: seen.append(cls) or real(cls, **more))
    with node_modules("settings", "all_options", "train", "wires") as (settings, all_options, train, wires):
        for node in (all_options.APTTrainOptions, train.APTTrain) * 2:
            node.define_schema()
        settings.train_config({"class_word": "toy"}, wires.AptOptions({}))
    assert len(seen) == len(set(seen)) == 1 + len(groups_of(TrainConfig))

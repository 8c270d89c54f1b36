"""The options nodes, which chain: `APT Method Options`, `Adapter Options`, `Data Options` and `Sample Options`.

Each shows the settings under its headings and passes on its input with its own settings added. So the order of
different nodes does not matter, and of two alike the later one counts. A new setting appears on the node that has its
heading.

In: the four nodes, and what they share with the single node of earlier versions (`all_options`). Not in: a setting's
widget and value (`settings`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from .checks import check_options, known, single
from .settings import Setting, every_setting, settings_shown, widget
from .train import ON_TRAIN
from .wires import AptOptions, AptOptionsWire

BORN = 5  # the round in which these nodes were made; older settings are ordered by heading only
METHOD, ADAPTER = ("APT",), ("adapter", "optimizer", "performance")
DATA, SAMPLES = ("subject", "data"), ("snapshots",)


def settings_of(headings: Iterable[str]) -> list[Setting]:
    """The settings of a node with these headings, in order; later settings come after all earlier ones."""
    order = list(headings)
    shown = [setting for setting in every_setting() if setting.name not in ON_TRAIN and setting.heading in order]
    return sorted(shown, key=lambda setting: (max(setting.said.since, BORN), order.index(setting.heading)))


def option_widget(setting: Setting) -> io.Input:
    """A widget labelled with its group; rarely used ones are behind the node's "advanced" switch."""
    advanced = setting.said.widget.advanced or None
    return widget(setting, label=f"{setting.heading} · {setting.name}", advanced=advanced)


def data_widgets() -> list[io.Input]:
    """Widgets for reading images and masks, which are not trainer settings."""
    return [
        io.Combo.Input(
            "mask_counts", options=["white", "black"], default="white", display_name="data · mask_counts",
            tooltip="Which part of a wired mask is learned. black: for Load Image's MASK of a cut-out picture, "
            "which is white where the picture is transparent.",
        ),
        io.Boolean.Input(
            "alpha_masks", default=False, display_name="data · alpha_masks",
            tooltip="Take the fourth channel of images that have one as their loss mask.",
        ),
        io.String.Input(
            "background", default="white", display_name="data · background",
            tooltip="Colour (a name or #rrggbb) behind transparent parts of images that have a fourth channel.",
        ),
    ]  # fmt: skip


def prior_images_input() -> io.Input:
    return io.Image.Input(
        "prior_images", optional=True,
        tooltip="Pictures of the class (other toys, say) for DreamBooth's prior preservation. They are "
        "neither augmented nor measured by the indicator.",
    )  # fmt: skip


def options_output() -> io.Output:
    return AptOptionsWire.Output("options", tooltip="Goes into APT Train's options, or into another options node's.")


def chained(inputs: Mapping[str, Any]) -> AptOptions:
    """The incoming `options` with this node's own values on top. The host passes one-element lists."""
    shown = single({name: values for name, values in inputs.items() if name != "prior_images"})
    before: AptOptions = shown.pop("options", None) or AptOptions({})
    merged = {**before.settings, **settings_shown(shown)}
    reading = {name: shown[name] for name in ("background", "alpha_masks", "mask_counts") if name in shown}
    prior = inputs.get("prior_images") or before.prior_images
    return dataclasses.replace(before, settings=merged, prior_images=prior, **reading)


def _schema(
    name: str,
    headings: Iterable[str],
    about: str,
    aliases: list[str],
    *more: io.Input,
    wires: tuple[io.Input, ...] = (),
) -> io.Schema:
    """`more`: widgets that are not settings, placed after those the node was made with."""
    first = [setting for setting in settings_of(headings) if setting.said.since <= BORN]
    added = [setting for setting in settings_of(headings) if setting.said.since > BORN]
    return io.Schema(
        node_id=f"APT{name}Options",
        display_name=f"APT {name} Options",
        category="training/APT",
        description=f"{about} Options nodes chain in any order; of two of a kind the later counts.",
        search_aliases=["apt options", "apt settings", "training options", *aliases],
        inputs=[
            *map(option_widget, first),
            *more,
            *map(option_widget, added),
            AptOptionsWire.Input("options", optional=True, tooltip="From another options node: this one adds to it."),
            *wires,
        ],
        outputs=[options_output()],
        is_input_list=True,
    )


def options_node(node: Any) -> Any:
    """The node with what every options node does: its widgets checked when a prompt is queued, its values passed on."""

    def validate_inputs(cls: Any, **inputs: Any) -> bool:
        """True, or an InputError about a setting that the host shows on the node before anything runs."""
        check_options(known(inputs), cls.define_schema().inputs)
        return True

    def execute(cls: Any, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(chained(inputs))

    node.validate_inputs, node.execute = classmethod(validate_inputs), classmethod(execute)
    return node


@options_node
class APTMethodOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "How APT Train learns and holds back: the three parts of APT, and the indicator that steers them."
        return _schema("Method", METHOD, about, ["temperature", "overfitting", "augmentation"])


@options_node
class APTAdapterOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "What APT Train trains and how fast: the LoRA, the optimizer, precision and memory."
        return _schema("Adapter", ADAPTER, about, ["lora", "dora", "optimizer", "learning rate", "memory"])


@options_node
class APTDataOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "The subject's word, how APT Train reads pictures, masks and captions, and pictures of the class."
        aliases = ["prior preservation", "mask", "bucket", "dreambooth", "identifier", "trigger word"]
        return _schema("Data", DATA, about, aliases, *data_widgets(), wires=(prior_images_input(),))


@options_node
class APTSampleOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "What APT Train keeps and shows on its way: snapshots, samples, drift, and when it stops by itself."
        return _schema("Sample", SAMPLES, about, ["preview", "snapshot", "checkpoint", "early stopping", "drift"])

"""`APT Train Options`: every setting that the training node does not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..apt_train.config import AdapterConfig, AptConfig, DataConfig, OptimizerConfig, OutputConfig
from .settings import Setting, value_of, widget
from .wires import AptOptions, AptOptionsWire

ON_TRAIN = {"learning_rate", "batch_size", "rank", "resolution", "caption_template"}  # shown by the training node
_PERFORMANCE = (Setting("", "precision"), Setting("", "gradient_checkpointing"), Setting("apt", "lazy_prior"))
_SUBJECT = (Setting("", "identifier_mode"), Setting("", "init_word"), Setting("", "dco_beta"))
# A workflow keeps widgets' values by their place: what was added later stands last, so that older ones still load.
_ADDED = {
    "snapshots": [Setting("output", "watch_drift"), Setting("output", "drift_prompts")],
    "optimizer": [Setting("optimizer", "optimizer")],
    "APT": [Setting("apt", "augment_fill")],
    "adapter": [Setting("adapter", "kind")],
}
# What is turned seldom waits behind the node's "advanced" switch.
_SELDOM = {
    "bins", "ema", "max_zoom", "max_degrees", "augment_variants", "dist_layers", "dist_mode", "attn_layers",
    "watch_indicator", "balance_every", "dropout", "min_rank", "beta1", "beta2", "epsilon", "weight_decay",
    "max_grad_norm", "bucket_multiple", "class_caption", "preview_steps", "preview_guidance", "preview_seed",
    "dco_beta", "drift_prompts",
}  # fmt: skip


def groups() -> dict[str, list[Setting]]:
    """The settings on the node, by the headings of its labels."""
    return {
        "subject": list(_SUBJECT),
        "APT": [setting for setting in _all("apt", AptConfig) if setting not in _PERFORMANCE],
        "adapter": _all("adapter", AdapterConfig),
        "optimizer": _all("optimizer", OptimizerConfig),
        "data": _all("data", DataConfig),
        "performance": list(_PERFORMANCE),
        "snapshots": _all("output", OutputConfig),
    }


def _all(group: str, home: type) -> list[Setting]:
    elsewhere = ON_TRAIN | {setting.name for settings in _ADDED.values() for setting in settings}
    return [Setting(group, item.name) for item in dataclasses.fields(home) if item.name not in elsewhere]


def settings_shown(shown: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The widgets' values as `AptOptions.settings`; a widget that is not among them is left out."""
    found: dict[str, dict[str, Any]] = {}
    for setting in (setting for group in (*groups().values(), *_ADDED.values()) for setting in group):
        if setting.name in shown:
            found.setdefault(setting.group, {})[setting.name] = value_of(setting, shown[setting.name])
    return found


def _widgets(by_heading: dict[str, list[Setting]]) -> list[io.Input]:
    return [
        widget(setting, label=f"{heading} · {setting.name}", advanced=setting.name in _SELDOM or None)
        for heading, settings in by_heading.items()
        for setting in settings
    ]


class APTTrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTTrainOptions",
            display_name="APT Train Options",
            category="training/APT",
            description="Every further setting of APT Train, by group. A value left alone is the paper's, or of "
            "DCO's published recipe, or where the tooltip says ours, our own choice.",
            search_aliases=["apt options", "apt settings", "training options", "dreambooth options"],
            inputs=[
                *_widgets(groups()),
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
                *_widgets(_ADDED),
                io.Image.Input(
                    "prior_images", optional=True,
                    tooltip="Pictures of the class (other toys, say) for DreamBooth's prior preservation. They are "
                    "neither augmented nor measured by the indicator.",
                ),
            ],
            outputs=[AptOptionsWire.Output("options", tooltip="Goes into APT Train's options.")],
            is_input_list=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True; InputError, which the host shows at the node before anything runs: a setting that cannot be."""
        from .checks import check_options, known

        check_options(known(inputs), cls.define_schema().inputs)
        return True

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        shown = {name: values[0] for name, values in inputs.items() if name != "prior_images" and values}
        return io.NodeOutput(
            AptOptions(
                settings=settings_shown(shown),
                background=shown["background"],
                alpha_masks=shown["alpha_masks"],
                mask_counts=shown["mask_counts"],
                prior_images=inputs.get("prior_images") or None,
            )
        )

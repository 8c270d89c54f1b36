"""`APT Train Options`: every setting that the training node does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .settings import Setting, every_setting, value_of, widget
from .train import ON_TRAIN
from .wires import AptOptions, AptOptionsWire


def settings() -> list[Setting]:
    """What the node shows, in order."""
    return [setting for setting in every_setting() if setting.name not in ON_TRAIN]


def settings_shown(shown: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The widgets' values as `AptOptions.settings`; a widget that is not among them is left out."""
    found: dict[str, dict[str, Any]] = {}
    for setting in settings():
        if setting.name in shown:
            found.setdefault(setting.group, {})[setting.name] = value_of(setting, shown[setting.name])
    return found


def option_widget(setting: Setting) -> io.Input:
    """Labelled by its group; what is turned seldom waits behind the node's "advanced" switch."""
    advanced = setting.said.widget.advanced or None
    return widget(setting, label=f"{setting.heading} · {setting.name}", advanced=advanced)


class APTTrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = [setting for setting in settings() if not setting.said.since]
        added = [setting for setting in settings() if setting.said.since]
        return io.Schema(
            node_id="APTTrainOptions",
            display_name="APT Train Options",
            category="training/APT",
            description="Every further setting of APT Train, by group. A value left alone is the paper's, or of "
            "DCO's published recipe, or where the tooltip says ours, our own choice.",
            search_aliases=["apt options", "apt settings", "training options", "dreambooth options"],
            inputs=[
                *map(option_widget, first),
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
                *map(option_widget, added),
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

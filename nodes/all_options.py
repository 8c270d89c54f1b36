"""`APT Train Options`, the single options node of earlier versions: it still loads and runs, but is deprecated.

It keeps its widgets in their order and gets no new ones; those are on the four nodes that replaced it (`options`).
"""

from __future__ import annotations

from comfy_api.latest import io

from .options import data_widgets, option_widget, options_node, options_output, prior_images_input
from .settings import Setting, every_setting
from .train import ON_TRAIN

LAST = 4  # the last round of settings that it has


def settings() -> list[Setting]:
    """The settings the node shows, in order."""
    return [s for s in every_setting() if s.name not in ON_TRAIN and s.said.since <= LAST]


@options_node
class APTTrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = [setting for setting in settings() if not setting.said.since]
        added = [setting for setting in settings() if setting.said.since]
        return io.Schema(
            node_id="APTTrainOptions",
            display_name="APT Train Options",
            category="training/APT",
            description="The settings of earlier versions in one node. It works as before and gets no new settings: "
            "use APT Method, Adapter, Data and Sample Options, which chain, with this one too.",
            is_deprecated=True,
            inputs=[
                *map(option_widget, first), *data_widgets(), *map(option_widget, added), prior_images_input(),
            ],
            outputs=[options_output()],
            is_input_list=True,
        )  # fmt: skip

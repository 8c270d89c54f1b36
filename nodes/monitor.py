"""`Overfit Indicator Monitor`: a run's curves as a picture, its verdict in words, and the LoRA of a snapshot.

In: the node. Not in: the live curves on it (`web/`, fed by `live`), the rule of the recommendation
(`apt_train.verdict.recommend`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .checks import check_widgets
from .wires import AptRun, AptRunWire

if TYPE_CHECKING:
    from ..apt_train.verdict.recommend import Recommendation
    from ..apt_train.verdict.run_files import RunRecord


class APTOverfitIndicatorMonitor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTOverfitIndicatorMonitor",
            display_name="Overfit Indicator Monitor",
            category="training/APT",
            description="Draws the curves of a run while APT Train trains it, and says in words whether it overfits. "
            "Passes on the LoRA of the snapshot you choose.",
            search_aliases=["overfitting", "training curves", "loss graph", "pick snapshot", "checkpoint", "gamma"],
            is_output_node=True,
            inputs=[
                AptRunWire.Input("run", tooltip="APT_RUN of APT Train or of APT Load Run."),
                io.Combo.Input(
                    "snapshot", options=["recommended", "last", "step"], default="recommended",
                    tooltip="Whose LoRA is passed on. recommended: the last snapshot before the drift ratio rose to "
                    "more than three times its lowest, or else the last of all. That ratio is how much unrelated "
                    "prompts change, divided by how much the subject's prompts change. The verdict gives the reason. "
                    "The rule does not see likeness: compare pictures. step: the one below.",
                ),
                io.Int.Input(
                    "step", default=250, min=1, max=10_000_000,
                    tooltip="The snapshot to take when snapshot says step. snapshot_every of APT Sample Options sets "
                    "how often they are kept.",
                ),
                io.Int.Input(
                    "width", display_name="picture width", default=1024, min=512, max=4096, step=8, advanced=True,
                    tooltip="Width of the picture in pixels; letters grow with it.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "curves", display_name="IMAGE",
                    tooltip="The indicator per noise level over the steps, as curves and as a heat map. Beneath it "
                    "the drift from the prior, the losses, and the balance of the terms.",
                ),
                io.String.Output(
                    "verdict", display_name="verdict",
                    tooltip="What the curves say and what they cannot know, what to change, which snapshot and why.",
                ),
                io.LoraModel.Output(
                    "lora", display_name="LORA_MODEL",
                    tooltip="The chosen snapshot's LoRA, for Load LoRA Model and Save LoRA Weights.",
                ),
                io.String.Output(
                    "trigger", display_name="trigger",
                    tooltip="Exactly what a prompt must say to show the subject as that snapshot knows it; APT Train's "
                    "own trigger is the last step's.",
                ),
                io.Int.Output("picked", display_name="picked step", tooltip="The step of the chosen snapshot."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError about a widget. Wired inputs are None here."""
        check_widgets(inputs, cls.define_schema().inputs)
        return True

    @classmethod
    def execute(cls, run: AptRun, snapshot: str, step: int, width: int) -> io.NodeOutput:
        from ..apt_train.report.plots import as_picture, glance_figure, overview_figure
        from ..apt_train.verdict.recommend import recommended_snapshot
        from .host.pictures import image_tensor
        from .published import publish
        from .run_store import record_of

        record = record_of(run)
        advised = recommended_snapshot(record.summary)
        picked = {"recommended": advised.step, "last": run.steps, "step": step}[snapshot]
        published = publish(run, picked)
        curves, words = image_tensor(as_picture(overview_figure(record), width)), verdict(record, advised, picked)
        # The node itself shows less, as the letters of the whole picture would be too small there.
        small = image_tensor(as_picture(glance_figure(record), 840))
        shown = {**ui.PreviewImage(small).as_dict(), "text": (words,), "run": (run.run_id,)}
        return io.NodeOutput(curves, words, published.lora, published.trigger, picked, ui=shown)


def verdict(record: RunRecord, advised: Recommendation, picked: int) -> str:
    """Which step is used and which is recommended, with the reason; then the run in words, and its notices.

    It is in the editor's language.
    """
    from ..apt_train.verdict.words import paragraph
    from ..apt_train.wording import counted
    from .host.language import translated

    goes_on = f"Step {picked} is passed on, as recommended"
    if picked != advised.step:
        goes_on = f"Step {picked} is passed on, though step {advised.step} is recommended"
    first = f"{translated(goes_on)}: {translated(advised.reason)}"
    told = [translated(notice.text) for notice in record.notices]
    notices = [f"{translated(counted(len(told), 'notice'))}:", *(f"- {text}" for text in told)] if told else []
    return "\n\n".join(filter(None, [first, paragraph(record.summary, translated), "\n".join(notices)]))

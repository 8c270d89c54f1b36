"""`APT Load Run`: passes on an earlier run as if its training node were in the graph.

In: the node, and the list of runs as a picture. Not in: what is published of a run (`published`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..apt_train.errors import InputError
from .checks import check_ranges
from .run_list import find_run, list_runs
from .wires import AptRun, AptRunWire

if TYPE_CHECKING:
    from PIL import Image

NEWEST, ACROSS, CELL, LABEL = 12, 4, 220, 20  # runs in the picture and per row; pixels of a sample and of letters
NO_RUN = "no run yet"


class APTLoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTLoadRun",
            display_name="APT Load Run",
            category="training/APT",
            description="Passes on an earlier run: to the monitor, to a snapshot sheet, or as a LoRA. "
            "Its picture shows the newest runs, each with its last sample.",
            search_aliases=["resume", "earlier run", "training history", "load lora run"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "run", options=list_runs() or [NO_RUN],
                    tooltip="The folder of the run in output/apt_train, the newest first. Press R to refresh the list.",
                ),
                io.Int.Input(
                    "step", default=0, min=0, max=10_000_000,
                    tooltip="Which snapshot's LoRA is passed on. 0: the newest. APT_RUN is always at the newest.",
                ),
            ],
            outputs=[
                AptRunWire.Output("apt_run", display_name="APT_RUN", tooltip="The run, at the last step it has saved."),
                io.LoraModel.Output("lora", display_name="LORA_MODEL", tooltip="Its LoRA at the chosen step."),
                io.String.Output("trigger", tooltip="Exactly what a prompt must say."),
                io.String.Output("class_word", tooltip="What kind of thing the subject is."),
                io.Image.Output("sheet", display_name="IMAGE", tooltip="The newest runs, each with its last sample."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run: str | None, step: int | None) -> Any:
        """Changes when the run has been trained further, or its published files are gone.

        For a wired run the host passes no name here, so it changes every time.
        """
        if run is None:
            return float("nan")
        from .published import missing_files
        from .run_store import steps_done

        return steps_done(find_run(run)), missing_files()

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True. InputError: there is no such run. A wired name is None here."""
        run, slots = inputs.get("run"), cls.define_schema().inputs
        if run == NO_RUN:
            _refuse_none()
        if run is not None:
            find_run(run)
        check_ranges(inputs, slots)
        return True

    @classmethod
    def execute(cls, run: str, step: int) -> io.NodeOutput:
        from .host.pictures import shown_on_node
        from .published import publish

        found = _opened(run)
        published = publish(found, step or None)
        tensor, shown = shown_on_node(runs_sheet(run), cls)
        return io.NodeOutput(found, published.lora, published.trigger, found.class_word, tensor, ui=shown)


def _refuse_none() -> None:
    """InputError with advice that depends on whether there is a run to choose."""
    if list_runs():
        raise InputError("No run is chosen: choose one of the list, the newest comes first.")
    raise InputError("There is no run in output/apt_train yet: train one with APT Train, then press R.")


def _opened(name: str) -> AptRun:
    """The run at its newest snapshot. InputError: it has none, or its files cannot be read."""
    from ..apt_train.run.config_file import read_config
    from .published import open_run
    from .run_store import steps_done

    folder = find_run(name)
    saved, done = read_config(folder), steps_done(folder)
    if not done:
        raise InputError(f"{name} has no snapshot yet: queue its training node to go on with it.")
    digest = saved.content.get("digest")
    if not isinstance(digest, str):
        raise InputError(f"{name} does not say what it was made of: restore its config.json, or train again.")
    return open_run(folder, replace(saved.settings, steps=done), digest)


def runs_sheet(chosen: str) -> Image.Image:
    """The newest runs, shown by their last samples if they have any; the chosen one's name is marked."""
    from ..apt_train.report.grid import labelled_grid, stacked_vertically

    names = list_runs()[:NEWEST]
    names = names if chosen in names else [chosen, *names[: NEWEST - 1]]
    shown = [(f"›{name}‹" if name == chosen else name, *_last_sample(name)) for name in names]
    rows = [shown[k : k + ACROSS] for k in range(0, len(shown), ACROSS)]
    return stacked_vertically(
        [
            labelled_grid(
                [[sample for _, _, sample in row]],
                [""],
                [f"{name}\nstep {step}" for name, step, _ in row],
                text_size=LABEL,
            )
            for row in rows
        ]
    )


def _last_sample(name: str) -> tuple[int, Image.Image]:
    """A run's current step and newest sample, grey if it has none."""
    from PIL import Image

    from .run_store import newest_samples, steps_done

    folder = find_run(name)
    step = steps_done(folder)
    samples = newest_samples(folder, step)
    return step, samples.tuned[0].resize((CELL, CELL)) if samples else Image.new("RGB", (CELL, CELL), "#dddddd")

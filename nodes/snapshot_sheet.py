"""`APT Snapshot Sheet`: snapshots, strengths and prompts as one labelled picture, and the chosen column's LoRA.

In: the node, and what it caches between executions. Not in: what its widgets mean (`sheet_cells`), drawing
(`host.drawing`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from comfy_api.latest import io

from ..apt_train.settings_field import require_text
from .checks import check_widgets
from .sheet_cells import (
    Column,
    check_count,
    chosen_column,
    columns_of,
    prompts_shown,
    steps_shown,
    strengths_shown,
)
from .wires import AptRun, AptRunWire

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .host.drawing import Drawing

PROMPTS = "a photo of {subject}\na photo of {subject} on the beach, at sunset\na watercolour painting of {subject}"
LABEL, WIDEST = 22, 220  # pixels: height of letters, maximal width of a row's label


class APTSnapshotSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .host.drawing import SAMPLERS, SCHEDULERS

        return io.Schema(
            node_id="APTSnapshotSheet",
            display_name="APT Snapshot Sheet",
            category="training/APT",
            description="Draws prompts by several snapshots of a run, at one seed, as one labelled sheet. Choose a "
            "column by its letter: its LoRA and strength are passed on.",
            search_aliases=["xy plot", "compare checkpoints", "lora strength", "pick snapshot", "grid"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that was trained on, without the new LoRA."),
                io.Clip.Input("clip", tooltip="Its text encoders."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                AptRunWire.Input("run", tooltip="APT_RUN of APT Train or of APT Load Run."),
                io.String.Input(
                    "prompts", default=PROMPTS, multiline=True,
                    tooltip="One prompt per line, each a row of the sheet. {subject} is where the subject goes: each "
                    "snapshot reads its own trigger there, the prior the class word. Ask for what the pictures do not "
                    "show.",
                ),
                io.String.Input(
                    "steps", default="", placeholder="four, and the recommended one",
                    tooltip="Which snapshots: steps separated by commas, last, recommended, or all. Empty: four from "
                    "the first to the last, and the recommended one.",
                ),
                io.String.Input(
                    "strengths", default="1",
                    tooltip="The LoRA's strengths, separated by commas, such as 0.6, 0.8, 1: a column for each "
                    "snapshot at each.",
                ),
                io.Boolean.Input("prior", default=True, tooltip="Whether the first column is the model as it was."),
                io.String.Input(
                    "column", default="", placeholder="the recommended snapshot",
                    tooltip="The letter of the column that is passed on. Empty: the recommended snapshot, at the "
                    "strength nearest to 1. Another letter draws nothing new.",
                ),
                io.Int.Input(
                    "seed", default=1, min=0, max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed, tooltip="Seed of every picture's noise.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="What no picture should show."),
                io.Int.Input(
                    "sampler_steps", default=20, min=1, max=1000,
                    tooltip="Sampling steps per picture. Fewer are quicker and rougher.",
                ),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Guidance, as in KSampler: 1 is none, higher follows the prompt more strictly.",
                ),
                io.Combo.Input("sampler_name", options=SAMPLERS, default="dpmpp_2m", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=SCHEDULERS, default="karras", tooltip="As in KSampler."),
                io.Int.Input(
                    "width", default=0, min=0, max=4096, step=8,
                    tooltip="Width of the pictures in pixels. 0: the model's own size.",
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=4096, step=8,
                    tooltip="Height of the pictures in pixels. 0: the model's own size.",
                ),
                io.Int.Input(
                    "cell", default=256, min=64, max=1024, step=8, advanced=True,
                    tooltip="The longer side of a picture on the sheet, in pixels.",
                ),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="IMAGE", tooltip="The sheet."),
                io.Model.Output("tuned", display_name="MODEL", tooltip="The model with the chosen LoRA on."),
                io.LoraModel.Output("lora", display_name="LORA_MODEL", tooltip="The chosen snapshot's LoRA."),
                io.Float.Output("strength", tooltip="The chosen strength, for a LoRA loader."),
                io.String.Output("trigger", tooltip="What a prompt must say to show the subject as that snapshot "
                                 "knows it."),
                io.Int.Output("step", tooltip="The chosen snapshot's step."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError that the host shows on the node before anything runs. Wired inputs are None here."""
        shown = {name: value for name, value in inputs.items() if value is not None}
        check_widgets(shown, cls.define_schema().inputs)
        require_text("negative", shown.get("negative", ""))
        if "prompts" in shown:
            prompts_shown(shown["prompts"])
        if "strengths" in shown:
            strengths_shown(shown["strengths"])
        if "steps" in shown:
            steps_shown(shown["steps"], [1], 1)
        return True

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, run: AptRun, prompts: str, steps: str, strengths: str, prior: bool,
        column: str, seed: int, negative: str, sampler_steps: int, cfg: float, sampler_name: str, scheduler: str,
        width: int, height: int, cell: int,
    ) -> io.NodeOutput:  # fmt: skip
        from ..apt_train.verdict.recommend import recommended_snapshot
        from .host.components import require_one_model
        from .host.drawing import Drawing
        from .host.loras import require_without
        from .host.model import with_lora
        from .host.pictures import shown_on_node
        from .published import checked_step, publish
        from .run_store import record_of, snapshot_steps

        record = record_of(run)
        require_one_model(model, clip, vae)
        require_without(model, (_lora(run, step) for step in snapshot_steps(run)))
        recommended = recommended_snapshot(record.summary).step
        shown = [checked_step(run, step) for step in steps_shown(steps, snapshot_steps(run), recommended)]
        columns, rows = columns_of(shown, strengths_shown(strengths), prior=prior), prompts_shown(prompts)
        check_count(len(columns), len(rows))
        chosen = chosen_column(column, columns, recommended)
        how = Drawing(seed, sampler_steps, cfg, sampler_name, scheduler, width, height)
        sheet = Sheet(DrawingWires(model, clip, vae), run, negative, how, cell, cls.hidden.unique_id).drawn(
            rows, columns, chosen
        )
        published = publish(run, chosen.step)
        tuned = with_lora(model, published.lora, chosen.strength)
        tensor, picture = shown_on_node(sheet, cls)
        return io.NodeOutput(tensor, tuned, published.lora, chosen.strength, published.trigger, chosen.step, ui=picture)


class DrawingWires(NamedTuple):
    """The wires that draw."""

    model: Any
    clip: Any
    vae: Any


@dataclass
class _Drawn:
    """What a node drew last, kept while its wires stay the same: choosing another column then draws nothing."""

    wires: tuple[weakref.ref[Any], ...] = ()
    pictures: dict[tuple[Any, ...], Image.Image] = field(default_factory=dict[tuple[Any, ...], "Image.Image"])

    @property
    def is_over(self) -> bool:
        """Whether the host has let go of the wires, so that nothing is drawn with them any more."""
        return any(wire() is None for wire in self.wires)

    def of(self, wires: DrawingWires) -> dict[tuple[Any, ...], Image.Image]:
        """The pictures drawn with these wires so far; other wires clear the cache."""
        if len(self.wires) != len(wires) or any(was() is not one for was, one in zip(self.wires, wires, strict=True)):
            self.wires, self.pictures = tuple(map(weakref.ref, wires)), {}
        return self.pictures


_DRAWN: dict[str, _Drawn] = {}  # by node; lives as long as the host process


@dataclass(frozen=True)
class Sheet:
    """A run's snapshots, drawn with the same wires and settings onto one sheet."""

    wires: DrawingWires
    run: AptRun
    negative: str
    how: Drawing
    cell: int
    node_id: str

    def drawn(self, prompts: list[str], columns: list[Column], chosen: Column) -> Image.Image:
        """Draw column by column, so that each LoRA is applied once for all prompts; the node shows the sheet so far."""
        from .host.progress import NodeProgress, stop_if_cancelled

        for node in [node for node, drawn in _DRAWN.items() if drawn.is_over]:
            del _DRAWN[node]
        known = _DRAWN.setdefault(self.node_id, _Drawn()).of(self.wires)
        keys = {(p, c): self._key(p, c) for c in columns for p in prompts}
        for key in set(known) - set(keys.values()):
            del known[key]
        missing = {c: rows for c in columns if (rows := [p for p in prompts if keys[p, c] not in known])}
        total, progress = sum(map(len, missing.values())), NodeProgress(self.node_id, len(keys))
        done = 0
        with progress.tells_cancel():
            for column, rows in missing.items():
                paint = self._painter(column)
                for prompt in rows:
                    stop_if_cancelled()
                    progress.say(f"drawing picture {done + 1} of {total}")
                    known[keys[prompt, column]] = paint(prompt)
                    done += 1
                    so_far = [[known.get(keys[p, c]) for c in columns] for p in prompts]
                    progress.show(done, total, _grid(so_far, prompts, columns))
        goes_on = f"step {chosen.step} at strength {chosen.strength:g} is passed on"
        progress.say(" · ".join([f"column {chosen.letter}", goes_on]))
        pictures = [[known[keys[p, c]] for c in columns] for p in prompts]
        return _grid(pictures, prompts, columns, chosen)

    def _key(self, prompt: str, column: Column) -> tuple[Any, ...]:
        of_run = None if column.step is None else (str(self.run.folder), self.run.owner, column.step, column.strength)
        return of_run, self.run.class_word, prompt, self.negative, self.how, self.cell

    def _painter(self, column: Column) -> Any:
        from ..apt_train import names
        from .host.attention import encode_text
        from .host.drawing import draw, knowing
        from .host.model import with_lora
        from .run_store import snapshot_of

        model, clip, trigger = self.wires.model, self.wires.clip, self.run.class_word
        if column.step is not None:
            folder = snapshot_of(self.run.folder, column.step)
            model, trigger = with_lora(model, _lora(self.run, column.step), column.strength), self.run.trigger
            if (folder / names.embedding_file(self.run.subject)).is_file():
                # With its folder's name, as the host takes any file of that name from any folder.
                word = f"{folder.name}/{names.embedding_stem(self.run.subject)}"
                clip, trigger = knowing(clip, folder.parent), f"{names.EMBEDDING}{word}"
        negative = encode_text(self.wires.clip, self.negative)

        def paint(prompt: str) -> Image.Image:
            positive = encode_text(clip, prompt.replace("{subject}", trigger))
            picture = draw(model, positive, negative, self.wires.vae, self.how)
            scale = self.cell / max(picture.size)
            return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))

        return paint


def _lora(run: AptRun, step: int) -> dict[str, Tensor]:
    from ..apt_train import names
    from ..apt_train.disk.tensor_file import read_tensors
    from .run_store import snapshot_of

    return read_tensors(snapshot_of(run.folder, step) / names.lora_file(run.subject))[0]


def _grid(
    pictures: Sequence[Sequence[Image.Image | None]],
    prompts: list[str],
    columns: list[Column],
    chosen: Column | None = None,
) -> Image.Image:
    """The labelled sheet; the chosen column's name is marked."""
    from ..apt_train.report.grid import fit_label, font, labelled_grid

    names = [f"› {column.label} ‹" if column == chosen else column.label for column in columns]
    face = font(LABEL, "".join([*prompts, *names]))
    rows = [fit_label(prompt, WIDEST, face) for prompt in prompts]
    return labelled_grid(pictures, rows, names, text_size=LABEL)

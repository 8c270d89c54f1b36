"""`APT LoRA Check-up`: checks any LoRA on its model, in numbers, in words and on one sheet, with a strength to use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..apt_train.errors import InputError
from ..apt_train.lora_check.asked import Asked
from .checks import check_widgets, is_wired, known, single
from .settings import Setting, value_of, widget
from .wires import AptOptions, AptRun, AptRunWire

if TYPE_CHECKING:
    from torch import Tensor

    from ..apt_train.data.dataset import ImageSet
    from ..apt_train.lora_check.findings import CheckUp
    from ..apt_train.lora_check.lora_file import LoraFile
    from ..apt_train.lora_check.subject import Subject

NO_FILE = "none"
_setting = partial(Setting, root=Asked)
WIRES = ("model", "clip", "vae")
LISTS = ("images", "captions")


class APTLoRACheckUp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTLoRACheckUp",
            display_name="APT LoRA Check-up",
            category="training/APT",
            description="Checks any LoRA on its model, whoever trained it. It says what the LoRA has learned "
            "of its pictures, how much else it changes, and the strength to use it at.",
            search_aliases=["lora strength", "inspect lora", "overfitting", "test lora", "lora analysis", "check lora"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    "sheet", display_name="IMAGE",
                    tooltip="One page: samples at each strength, the gain by noise level, drift, attention, blocks.",
                ),
                io.String.Output(
                    "verdict", display_name="verdict",
                    tooltip="What was found and what cannot be seen, in words: for Preview as Text.",
                ),
                io.Float.Output(
                    "strength", display_name="strength",
                    tooltip="The strength to use it at, for strength_model of a LoRA loader.",
                ),
                io.String.Output("numbers", display_name="numbers", tooltip="Everything measured, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """Changes when the chosen file has changed, and every time if its name comes by a wire."""
        from .host.loras import lora_path

        if is_wired(inputs, "lora_name"):
            return float("nan")
        name = known(inputs).get("lora_name", NO_FILE)
        return [] if name == NO_FILE else [lora_path(name).stat().st_mtime]  # on an error the host runs the node

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError about a widget that the host shows on the node before anything runs."""
        shown = known(inputs)
        check_widgets(shown, cls.define_schema().inputs)
        if "lora_name" in shown:
            _require_one({} if "lora" in inputs else "", shown["lora_name"])
        if "strengths" in shown:
            Asked(strengths=_strengths(shown["strengths"]))
        return True

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """The model's wires, requested only after everything else has been checked."""
        missing = [name for name in WIRES if is_wired(inputs, name)]
        if missing:
            _question(inputs)
        return missing

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..apt_train.lora_check.numbers import as_json
        from ..apt_train.lora_check.sheet import sheet
        from ..apt_train.lora_check.verdict import paragraphs
        from .host.language import translated
        from .host.pictures import shown_on_node

        one = single(inputs, *LISTS)
        found = _checked_up(_question(inputs), one, cls.hidden.unique_id)
        words = "\n\n".join(paragraphs(found, translated))
        page, shown = shown_on_node(sheet(found, one["width"]), cls, text=(words,))
        return io.NodeOutput(page, words, found.recommendation.strength, as_json(found), ui=shown)


@dataclass(frozen=True)
class _Question:
    """What to check, without the model."""

    lora: LoraFile
    tensors: dict[str, Tensor]
    subject: Subject
    images: ImageSet | None
    asked: Asked


def _inputs() -> list[Any]:
    from .host.loras import lora_names

    return [
        io.Model.Input("model", lazy=True, tooltip="The model the LoRA is for, without it. Others on it are baked in."),
        io.Clip.Input("clip", lazy=True, tooltip="Its text encoders. A LoRA's part for them is measured too."),
        io.Vae.Input("vae", lazy=True, tooltip="Its VAE: turns pictures into latents, and samples into pictures."),
        io.LoraModel.Input(
            "lora", optional=True,
            tooltip="The LoRA by wire: LORA_MODEL of APT Train, of the monitor, or of another node.",
        ),
        io.Image.Input(
            "images", optional=True,
            tooltip="The pictures it was trained on. Without them only what it changes is known, not what it learned.",
        ),
        AptRunWire.Input(
            "run", optional=True, tooltip="A run of APT Train: fills class_word and trigger where they are empty."
        ),
        io.Combo.Input(
            "lora_name", options=[NO_FILE, *lora_names()], default=NO_FILE,
            tooltip="The LoRA as a file of the LoRA folders, from any trainer. none: the one on the lora wire.",
        ),
        io.String.Input(
            "class_word", default="", placeholder="for example dog",
            tooltip="What its subject is, in words the model knows. Empty: as the run or the file says.",
        ),
        io.String.Input(
            "trigger", default="", placeholder="for example sks dog",
            tooltip="What a prompt must say for it: words, or embedding:NAME. Empty: as the run or the file says, else "
            "the class word.",
        ),
        widget(_setting("prompt")),
        io.String.Input(
            "captions", optional=True, default="", multiline=True,
            tooltip="What the pictures show: a wired list, or a line per picture. An empty line takes the prompt.",
        ),
        widget(_setting("draws")),
        widget(_setting("sample_steps")),
        widget(_setting("seed"), control_after_generate=io.ControlAfterGenerate.fixed),
        io.String.Input(
            "strengths",
            default=" ".join(map(str, Asked.strengths)),
            advanced=True,
            tooltip="Which strengths are tried, separated by spaces or commas. Fewer are quicker.",
        ),
        widget(_setting("resolution"), advanced=True),
        widget(_setting("unrelated"), optional=True, advanced=True),
        io.Int.Input(
            "width", display_name="picture width", default=1400, min=700, max=4096, step=8, advanced=True,
            tooltip="Width of the sheet in pixels. Letters grow with it.",
        ),
    ]  # fmt: skip


def _require_one(wire: Any, name: str) -> None:
    if not isinstance(wire, dict) and name == NO_FILE:
        raise InputError("No LoRA is given: wire one into lora, or choose a file in lora_name.")
    if isinstance(wire, dict) and name != NO_FILE:
        raise InputError("Two LoRAs are given: set lora_name to none, or disconnect lora.")


def _question(inputs: dict[str, Any]) -> _Question:
    """InputError: no LoRA, two, or an unreadable one; a subject without words; captions that do not match."""
    import torch

    from ..apt_train.lora_check.lora_file import read_lora, sorted_lora
    from .training import image_set

    one = single(inputs, *LISTS)
    wire, name = one.get("lora", ""), one["lora_name"]
    _require_one(wire, name)
    with torch.inference_mode(False):
        if isinstance(wire, dict):
            tensors = {key: tensor.clone() for key, tensor in wire.items()}
            lora = sorted_lora(tensors, "The LoRA on the wire")
        else:
            from .host.loras import lora_path

            lora, tensors = read_lora(lora_path(name)), {}
        given = list(inputs.get("images") or ())
        images = image_set(given, inputs.get("captions"), None, AptOptions({})) if given else None
        return _Question(lora, tensors, _subject(lora, one), images, _asked(one))


def _subject(lora: LoraFile, one: dict[str, Any]) -> Subject:
    from ..apt_train.lora_check.subject import Subject
    from .host.loras import embedding_rows

    run: AptRun | None = one.get("run")
    class_word = one["class_word"].strip() or (run.class_word if run else "")
    trigger = one["trigger"].strip() or (run.trigger if run else "")
    said = trigger or lora.trigger
    return Subject.of(lora, class_word, trigger, embedding_rows(said, lora.embedding))


def _asked(one: dict[str, Any]) -> Asked:
    return Asked(
        strengths=_strengths(one["strengths"]),
        prompt=one["prompt"],
        unrelated=value_of(_setting("unrelated"), one.get("unrelated", "")),
        resolution=one["resolution"], draws=one["draws"], sample_steps=one["sample_steps"], seed=one["seed"],
    )  # fmt: skip


def _checked_up(question: _Question, one: dict[str, Any], node_id: str) -> CheckUp:
    from ..apt_train.disk.tensor_file import read_tensors
    from ..apt_train.lora_check.check_up import check_up
    from ..apt_train.lora_check.with_lora import working_dtype
    from .host.components import Wires
    from .host.loras import lora_path, require_without, taken_by_host
    from .host.memory import training_room
    from .host.progress import NodeProgress

    wires = Wires.checked(*(one[name] for name in WIRES))
    tensors = question.tensors or read_tensors(lora_path(one["lora_name"]))[0]
    require_without(wires.model, [tensors])
    taken = taken_by_host(wires.model, wires.clip, tensors)
    progress = NodeProgress(node_id, 1)
    progress.say("reading the weights")
    with progress.tells_cancel(), training_room():
        components = wires.components(working_dtype(question.asked.precision, wires.device), "")
        found = check_up(
            components, question.lora, question.subject, replace(question.asked, device=wires.device),
            images=question.images, busy=_shown(progress),
        )  # fmt: skip
    return replace(found, notes=[*found.notes, *_host_note(taken, len(found.placement.placed))])


def _strengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise InputError(f"strengths is {text!r}: write numbers separated by spaces or commas.") from None


def _shown(progress: Any) -> Any:
    """A callback that moves the bar, reports progress, and reacts to Cancel."""
    from .host.progress import throttled_progress

    tell = throttled_progress(progress.say, "check-up")

    def busy(done: int, total: int) -> None:
        tell(done, total)
        progress.show(done, max(total, 1))

    return busy


def _host_note(taken: int | None, placed: int) -> list[str]:
    from .host.loras import HOST_FAILS

    if taken is None:
        return [HOST_FAILS]
    if taken >= placed:
        return []
    return [
        f"ComfyUI's own loader does not take all layers measured here ({taken} of {placed}): convert the file to the "
        "names of kohya."
    ]

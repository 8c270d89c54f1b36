"""`apt-train inspect`: its options, and a check-up from files to files.

Nothing heavy is imported before the command runs. Not in: the check-up itself (`check_up`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..console.options import add_model_options, add_settings
from ..errors import InputError
from ..events import BusyEvent
from ..paths import are_same, expanded, one_line
from ..settings_field import built, fields_of
from .asked import Asked

if TYPE_CHECKING:
    from ..data.dataset import ImageSet
    from ..families.components import Components
    from .findings import CheckUp
    from .lora_file import LoraFile
    from .subject import Subject

# The settings of a check-up that have an option; `strengths`, a list of numbers, is none of the common kinds.
SETTINGS = ("prompt", "unrelated", "draws", "sample_steps", "seed", "resolution", "precision")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`. The check-up itself validates numbers, with better messages."""
    add = parser.add_argument
    add("file", help="the LoRA, a .safetensors from APT Train or any other trainer (LoRA, LoCon, DoRA, LoHa, LoKr)")
    add("--checkpoint", required=True, help="the model it is for: a diffusers folder or a .safetensors (SD1.5, SDXL)")
    add("--images", help="folder of the pictures it was trained on, with X.txt captions beside them")
    add("--class-word", default="", help="what its subject is, such as dog (default: as the LoRA says)")
    add("--trigger", default="", help="what a prompt must say for it (default: as the LoRA says, or the class word)")
    add("--embedding", help="the learned word's file, to prompt with embedding:FILE (default: beside the LoRA)")
    add_settings(add, Asked, SETTINGS)
    usual = " ".join(map(str, Asked.strengths))
    text = f"strengths to try (default: {usual})"
    add("--strengths", nargs="+", action="extend", type=float, metavar="NUMBER", help=text)
    add("--background", help="colour under transparent pictures (default: white)")
    add_model_options(add)
    add("--out", help="folder for the sheet and the numbers (default: the next free runs/inspect-N)")


def inspect(options: argparse.Namespace, output: Path) -> int:
    """Check the LoRA, print the verdict, and write `check_up.png` and `check_up.json` into `output`."""
    from ..console.progress import Progress
    from ..disk.files import check_writable
    from ..training.device import resolve_device
    from .check_up import check_up
    from .lora_file import read_lora
    from .verdict import paragraphs
    from .with_lora import working_dtype

    asked = _asked(options)
    working_dtype(asked.precision, resolve_device(options.device))
    if options.images is not None and are_same(output, expanded(options.images)):
        raise InputError(f"--out is {output}, among the pictures, where the sheet would be trained on: give another.")
    check_writable(output)
    lora = read_lora(options.file)  # may refuse, so before reading gigabytes
    subject = _subject(options, lora)
    with Progress(options.device) as progress:
        components, images = _loaded(options)
        found = check_up(
            components, lora, subject, asked, images=images,
            busy=lambda done, total: progress(BusyEvent("check-up", 0, done, total)),
        )  # fmt: skip
    print("\n\n".join(map(one_line, paragraphs(found))), end="\n\n")
    _write(found, output)
    print(f"Sheet: {one_line(str(output / 'check_up.png'))}")
    print(f"Numbers: {one_line(str(output / 'check_up.json'))}")
    return 0


def _asked(options: argparse.Namespace) -> Asked:
    """The request. InputError: an invalid value, or an option that has no effect without another one."""
    for name, needed, is_there in (
        ("draws", "--images", options.images is not None),
        ("background", "--images", options.images is not None),
        ("seed", "--sample-steps above 0", getattr(options, "sample_steps", None) != 0),
    ):
        if getattr(options, name, None) is not None and not is_there:
            raise InputError(f"--{name} does nothing without {needed}: give that too, or leave it out.")
    values = {name: getattr(options, name, None) for name in fields_of(Asked)}
    return built(Asked, {name: value for name, value in values.items() if value is not None})


def _subject(options: argparse.Namespace, lora: LoraFile) -> Subject:
    """The subject, with the learned word of `--embedding`, or of the file beside the LoRA that the trigger names."""
    from ..disk.tensor_file import read_tensors
    from ..names import EMBEDDING
    from ..text.captions import learned_name
    from .lora_file import word_beside
    from .subject import Subject

    trigger = options.trigger.strip()
    place = word_beside(expanded(options.file), trigger) or lora.embedding
    if options.embedding is not None:
        place = expanded(options.embedding, "--embedding")
        trigger = trigger or (lora.trigger if learned_name(lora.trigger) is not None else f"{EMBEDDING}{place.stem}")
        if learned_name(trigger) is None:
            raise InputError(f"--trigger is {trigger!r}, so --embedding does nothing: leave one of them out.")
    is_learned = learned_name(trigger or lora.trigger) is not None
    rows = read_tensors(place)[0] if is_learned and place is not None else None
    return Subject.of(lora, options.class_word, trigger, rows)


def _loaded(options: argparse.Namespace) -> tuple[Components, ImageSet | None]:
    from ..data.dataset import load_images
    from ..families.load import load_checkpoint

    images = None
    if options.images is not None:
        images = load_images(options.images, background=options.background or "white")
    told = {name: getattr(options, name) for name in ("tokenizer", "vae", "prediction_type", "zero_terminal_snr")}
    return load_checkpoint(options.checkpoint, **told), images


def _write(found: CheckUp, output: Path) -> None:
    from ..disk.files import atomic_write, write_text
    from .numbers import as_json
    from .sheet import sheet

    output.mkdir(parents=True, exist_ok=True)
    picture = sheet(found)
    atomic_write(output / "check_up.png", lambda temporary: picture.save(temporary, format="PNG"))
    write_text(output / "check_up.json", as_json(found))

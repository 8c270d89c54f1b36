"""The command line: `apt-train run | resume | check | report | inspect | demo`, the same as `python -m apt_train`.

Exit codes: 0 finished, or stopped by Ctrl-C or a signal with the work saved; 1 `check` has findings; 2 an input cannot
be used; 130, 143 or 129 aborted by Ctrl-C, SIGTERM or SIGHUP.
Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import OutputConfig, TrainConfig
from .console.interruption import exit_code, interrupted_by_signals
from .console.options import (
    add_config_options,
    add_model_options,
    add_reading_options,
    config_from,
    option_name,
    shown_choices,
    unread,
)
from .console.terminal import is_terminal, lossy_output
from .disk.files import check_new_file, check_writable
from .disk.silenced import quiet_libraries
from .errors import InputError
from .lora_check.command import add_options
from .paths import absolute, are_same, argument, command, expanded, one_line
from .presets import PRESETS, PUBLISHED, in_force, preset_named
from .wording import counted

if TYPE_CHECKING:
    from .data.dataset import ImageSet
    from .events import TrainResult
    from .families.components import Components

_INPUTS = (
    "checkpoint", "prediction_type", "images", "tokenizer", "prior_images", "background", "alpha_masks",
    "skip_bad_images", "vae", "zero_terminal_snr",
)  # fmt: skip
_PLACES = {  # the inputs that are paths, which may have moved by the time a run is resumed
    "checkpoint": "checkpoint", "vae": "VAE", "images": "pictures", "tokenizer": "tokenizer",
    "prior_images": "prior images",
}  # fmt: skip
_SWITCHES = ("alpha_masks", "skip_bad_images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    with lossy_output():
        try:
            with interrupted_by_signals():
                options = build_parser().parse_args(arguments)
                absolute(Path())  # fail early: libraries crash if the current folder was deleted
                return options.command(options)
        except InputError as error:
            return _complain(str(error), 2)
        except OSError as error:
            what = error.filename or "A file"
            return _complain(f"{what} cannot be used ({error.strerror or error}): check its path and permissions.", 2)
        except (RuntimeError, MemoryError) as error:
            from .training.out_of_memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return _complain("Out of memory: close other programs, or use a smaller model or fewer pictures.", 2)
        except KeyboardInterrupt as error:
            if is_terminal(sys.stderr):
                print(file=sys.stderr)  # the terminal echoed ^C where the sentence would begin
            return _complain("aborted; what was saved before stays.", exit_code(error))


def _complain(sentence: str, code: int) -> int:
    print(f"apt-train: {one_line(sentence)}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Takes only options that are written out, and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A command refuses what it does not know itself, because the options are in its own help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown option {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        shown = message if len(message) < 300 else f"{message[:300]}..."
        raise InputError(f"{shown}: see `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = _Parser(prog="apt-train", description="Personalize a diffusion model from 3-10 pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, about, add_to, run in (
        ("run", "train a LoRA on a folder of pictures", _add_run, _run),
        ("resume", "continue a run, to its end or to more steps", _add_resume, _resume),
        ("check", "check a folder of pictures before training", _add_check, _check),
        ("report", "draw a run's curves and say what they mean", _add_report, _report),
        ("inspect", "test any LoRA on its model", add_options, _inspect),
        ("demo", "train on the embedded model and draw one sheet", _add_demo, _demo),
    ):
        made = commands.add_parser(name, help=about)
        add_to(made)
        made.set_defaults(command=run)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("inputs").add_argument
    add("--checkpoint", required=True, help="a diffusers folder or a .safetensors file (SD1.5, SDXL)")
    add_model_options(add)
    add("--images", required=True, help="folder of pictures, with X.txt captions and X-mask.png masks beside them")
    add("--prior-images", help="folder of class pictures for prior preservation")
    add_reading_options(add)
    add("--output", required=True, help="a new folder for the run")
    names = "|".join(name.replace(" ", "-") for name in PRESETS)
    text = "settings for a purpose; an option that you give overrides it (default: published)"
    add("--preset", default=PUBLISHED, metavar=names, help=text)
    add_config_options(parser)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", help="the run's folder")
    add("--steps", type=int, help="new total of steps")
    add("--stop", metavar=shown_choices(OutputConfig, "stop"), help="another rule for ending early; never: train on")
    for name, what in _PLACES.items():
        add(option_name(name), help=f"the new place of the run's {what}, after a move")
    add("--device", help="cpu, cuda, cuda:1, mps ... (default: CUDA or MPS if there is one)")


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", help="folder of pictures, with X.txt captions and X-mask.png masks beside them")
    add("--resolution", type=int, default=512, help="as in the run: 512 for SD1.5 (default), 1024 for SDXL")
    add("--bucket-multiple", type=int, default=0, help="as in the run (default: 64, or 8 below 512)")
    add("--class-word", default="", help="as in the run: captions are searched for it")
    add("--identifier", default="", help="as in the run, likewise")
    add_reading_options(add)
    add("--sheet", help="a .png to draw the contact sheet in: crops, masks, captions and findings")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the run's folder")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", help="where the sheet and the runs go (default: the next free runs/demo-N)")
    parser.add_argument("--steps", type=int, help="steps of each run; empty: the demo's own")


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)
    from .run.folder import RunFolder

    output = expanded(options.output, "--output")
    RunFolder.open_new(output, config.name)  # refuse before reading gigabytes
    inputs = {name: getattr(options, name) for name in _INPUTS} | _given_places(options)
    preset = preset_named(options.preset).name
    if sets := in_force(preset, config):
        print(f"Preset {preset}: {sets}")
    for sentence in unread(options, config):
        print(sentence)
    return _train(config, inputs, output, options.device, resume=False, preset=preset)


def _resume(options: argparse.Namespace) -> int:
    from .run.config_file import read_config

    folder = expanded(options.folder, "The run's folder")
    saved = read_config(folder)
    config = saved.settings
    check_writable(folder)
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps)
    if options.stop is not None:
        config = dataclasses.replace(config, output=dataclasses.replace(config.output, stop=options.stop))
    inputs = _saved_inputs(saved.content, folder) | _given_places(options)
    for name in _PLACES:
        _check_still_there(name, inputs, folder)
    return _train(config, inputs, folder, options.device, resume=True)


def _given_places(options: argparse.Namespace) -> dict[str, str]:
    """The input paths that were given, made absolute, as config.json stores them."""
    given = {name: getattr(options, name) for name in _PLACES}
    return {name: str(absolute(expanded(text, option_name(name)))) for name, text in given.items() if text is not None}


def _saved_inputs(saved: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The inputs a run began with. Those that an older version did not have get the value it implied.

    InputError: the run was not started by this command, or its config.json was edited.
    """
    from .disk.json_file import is_object

    inputs = saved.get("inputs")
    if not is_object(inputs):
        raise InputError(f"{folder} was not written by `apt-train run`: resume it where it was started.")
    inputs = {**dict.fromkeys(_INPUTS), "background": "white", **dict.fromkeys(_SWITCHES, False), **inputs}
    for name in _INPUTS:
        value, is_switch = inputs[name], name in _SWITCHES
        kind = bool if is_switch or name == "zero_terminal_snr" else str
        if not isinstance(value, kind) and (is_switch or value is not None):
            raise InputError(f"{name} is {value!r} in {folder / 'config.json'}: restore what the run wrote.")
    return inputs


def _check_still_there(name: str, inputs: dict[str, Any], folder: Path) -> None:
    """InputError, naming the option to use, if the run's checkpoint, pictures ... are no longer where they were."""
    if inputs[name] is None and name not in ("checkpoint", "images"):
        return
    path = expanded(inputs[name] or "", f"The path of the {_PLACES[name]}")
    inputs[name] = str(absolute(path))
    if not path.exists():
        again = command("resume", argument(folder), option_name(name))
        raise InputError(f"The run had its {_PLACES[name]} at {path}, where nothing is now: give `{again} PATH`.")


def _train(
    config: TrainConfig, inputs: dict[str, Any], output: Path, device: str | None, *, resume: bool, preset: str = ""
) -> int:
    """`preset`: the preset in use, recorded in config.json; empty for a resumed run, which has its own record."""
    from .console.progress import Progress, stop_on_interrupt
    from .events import BusyEvent
    from .training.train import train

    with Progress(device) as reading:
        reading(BusyEvent("weights", 0))
        components, images, prior_images = _load(inputs)
    before = _written(output)
    with (
        Progress(device, gamma=config.measures_indicator) as progress,
        stop_on_interrupt(progress, lambda: _written(output) != before),
    ):
        result = train(
            components,
            images,
            config,
            prior_images=prior_images,
            output_dir=output,
            resume=resume,
            device=device,
            on_event=progress,
            record={"checkpoint": components.source, "inputs": inputs} | ({"preset": preset} if preset else {}),
        )
    _say_done(result, output, config.name)
    return 0


def _written(output: Path) -> tuple[int, int] | None:
    """Identifies the config.json on disk. A run writes its own once everything is ready, just before its first step."""
    with contextlib.suppress(OSError):
        found = (output / "config.json").stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _load(inputs: dict[str, Any]) -> tuple[Components, ImageSet, ImageSet | None]:
    with quiet_libraries():
        from .data.dataset import load_images
        from .families.load import load_checkpoint

        reading = {name: inputs[name] for name in ("background", *_SWITCHES)}
        images = load_images(inputs["images"], **reading)
        prior = load_images(inputs["prior_images"], **reading) if inputs["prior_images"] else None
        told = {name: inputs.get(name) for name in ("prediction_type", "vae", "zero_terminal_snr")}
        return load_checkpoint(inputs["checkpoint"], tokenizer=inputs["tokenizer"], **told), images, prior


def _say_done(result: TrainResult, output: Path, name: str) -> None:
    if not result.steps_done:
        return print("Stopped before the first step, nothing was trained: run the same command again.")
    if result.stopped:
        again = command("resume", argument(output))
        print(f"Stopped after {counted(result.steps_done, 'step')}, nothing is lost; go on with: {again}")
    place = one_line(str(output / name))
    print(f"LoRA: {place}.safetensors")
    if result.embeddings is not None:
        print(f"Embedding: {place}_embedding.safetensors (ComfyUI reads it from models/embeddings)")
    print(f"In a prompt, write: {result.trigger}")
    if result.report is not None:  # otherwise a notice gave the reason
        print(f"Curves and verdict: {one_line(str(result.report))}")
    if result.notices:
        where = f": see Notices in {one_line(str(result.report))}" if result.report is not None else ""
        print(f"{counted(len(result.notices), 'notice')}, told above{where}")


def _report(options: argparse.Namespace) -> int:
    folder = expanded(options.folder, "The run's folder")
    check_writable(folder)
    from .report import write_report

    print(f"Report: {one_line(str(write_report(folder)))}")
    return 0


def _check(options: argparse.Namespace) -> int:
    folder = expanded(options.folder, "The image folder")
    sheet = None if options.sheet is None else _sheet_place(options.sheet, folder)
    from .data.dataset import load_images
    from .photo_check.preflight import preflight

    reading = {name: getattr(options, name) for name in ("background", *_SWITCHES)}
    found = preflight(
        load_images(folder, **reading),
        options.resolution,
        multiple=options.bucket_multiple,
        class_word=options.class_word,
        identifier=options.identifier,
    )
    for line in found.lines():
        print(one_line(line))
    if sheet is not None:
        from .photo_check.sheet import write_sheet

        write_sheet(found, sheet)
        print(f"Sheet: {one_line(str(sheet))}")
    return 1 if found.findings else 0


def _sheet_place(given: str, folder: Path) -> Path:
    """InputError: not a .png, a picture the next run would train on, or an existing file that is no contact sheet."""
    place = expanded(given, "--sheet")
    if place.suffix.lower() != ".png":
        raise InputError(f"--sheet is {given}: give the name of a .png file.")
    if are_same(absolute(place).resolve().parent, folder):
        raise InputError(f"--sheet is {given}, among the pictures, where it would be trained on: give another place.")
    check_new_file(place)
    if os.path.lexists(place):
        from .photo_check.sheet import MARK
        from .run.preview_files import png_text

        if png_text(place, MARK[0]) != MARK[1]:
            raise InputError(f"--sheet is {given}, a file that is not a contact sheet: give another name.")
    return place


def _inspect(options: argparse.Namespace) -> int:
    from .lora_check.command import inspect

    output = _free_folder("runs/inspect") if options.out is None else expanded(options.out, "--out")
    with quiet_libraries():
        return inspect(options, output)


def _demo(options: argparse.Namespace) -> int:
    output = _free_folder("runs/demo") if options.output is None else expanded(options.output, "--output")
    with quiet_libraries():
        from .demo.demo import run_demo

        print(f"Sheet: {one_line(str(run_demo(output, steps=options.steps)))}")
    return 0


def _free_folder(stem: str) -> Path:
    """The first of stem-1, stem-2, ... that does not exist, so that a command can be repeated."""
    return next(path for path in (Path(f"{stem}-{n}") for n in itertools.count(1)) if not path.exists())

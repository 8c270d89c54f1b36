"""The command line: `apt-train run | resume | report | demo`, the same as `python -m apt_train`.

In: options (made from the config dataclasses), and the exit codes: 0 done or stopped by Ctrl-C with the work saved,
2 something given cannot be used, 130 aborted. Not in: heavy imports at the top, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from .config import AdapterConfig, AptConfig, DataConfig, OptimizerConfig, OutputConfig, TrainConfig
from .errors import InputError

if TYPE_CHECKING:
    from .components import Components
    from .dataset import ImageSet
    from .events import TrainResult

_GROUPS: dict[str, tuple[str, type]] = {
    "adapter": ("adapter", AdapterConfig),
    "apt": ("APT", AptConfig),
    "optimizer": ("optimizer", OptimizerConfig),
    "data": ("data", DataConfig),
    "output": ("snapshots and previews", OutputConfig),
}
_INPUTS = (
    "checkpoint", "prediction_type", "images", "tokenizer", "prior_images", "background", "alpha_masks",
    "skip_bad_images",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        return options.command(options)
    except InputError as error:
        print(f"apt-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("apt-train: aborted; the last snapshot stays.", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "unknown option")
        raise InputError(f"{message}: see `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="apt-train", description="Personalize a diffusion model from 3-10 pictures.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands.add_parser("run", help="train a LoRA on a folder of pictures", allow_abbrev=False))
    _add_resume(commands.add_parser("resume", help="go on with a run, to its end or to more steps", allow_abbrev=False))
    report = commands.add_parser("report", help="draw a run's curves and say what they mean", allow_abbrev=False)
    report.add_argument("folder", type=Path, help="the run's folder")
    report.set_defaults(command=_report)
    demo = commands.add_parser("demo", help="train on the embedded model and draw one sheet", allow_abbrev=False)
    demo.add_argument(
        "--output", type=Path, help="where the sheet and the runs go (default: the next free runs/demo-N)"
    )
    demo.add_argument("--steps", type=int, help="steps of each run; empty: the demo's own")
    demo.set_defaults(command=_demo)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--checkpoint", required=True, help="a diffusers folder or a .safetensors file (SD1.5, SDXL)")
    inputs.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the model predicts, for a file that does not say so itself (else epsilon)",
    )
    inputs.add_argument(
        "--images", required=True, help="folder of pictures, with X.txt captions and X-mask.png masks beside them"
    )
    inputs.add_argument(
        "--tokenizer",
        help="folder of the CLIP vocabulary, for a single file (else $COMFYUI_PATH, else the local cache)",
    )
    inputs.add_argument("--prior-images", help="folder of class pictures for prior preservation")
    inputs.add_argument("--background", default="white", help="colour under transparent pictures (default: white)")
    inputs.add_argument("--alpha-masks", action="store_true", help="take transparency as the loss mask")
    inputs.add_argument("--skip-bad-images", action="store_true", help="leave out pictures that cannot be read")
    inputs.add_argument("--output", type=Path, required=True, help="a new folder for the run")
    inputs.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    add_config_options(parser)
    parser.set_defaults(command=_run)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--steps", type=int, help="new total of steps")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    parser.set_defaults(command=_resume)


# -- options from the config dataclasses


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option per setting, named as its field; what is not given is not in the namespace."""
    _add_fields(parser.add_argument_group("run"), TrainConfig, skip=set(_GROUPS))
    for title, cls in _GROUPS.values():
        _add_fields(parser.add_argument_group(title), cls, skip=set())


def _add_fields(group: argparse._ArgumentGroup, cls: type, skip: set[str]) -> None:
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.name in skip:
            continue
        required = item.default is dataclasses.MISSING
        text = item.metadata["help"].replace("%", "%%")
        group.add_argument(
            "--" + item.name.replace("_", "-"),
            dest=item.name,
            required=required,
            default=argparse.SUPPRESS,
            help=text if required else f"{text} (default: {_shown(item.default)})",
            **_kind(hints[item.name]),
        )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return shlex.join(default) or "none"
    return (
        {None: "empty", "": "empty", True: "on", False: "off"}.get(default, str(default))
        if not _number(default)
        else str(default)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(hint: Any) -> dict[str, Any]:
    """argparse's words for a field's type. Choices and ranges are left to the config, which says them better."""
    if get_origin(hint) is tuple:
        return {"nargs": "+", "metavar": "TEXT"}
    parts = {str if get_origin(part) is Literal else part for part in get_args(hint) or (hint,)} - {type(None)}
    if bool in parts:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"metavar": "|".join(get_args(hint))}
    if parts == {float, str}:
        return {"type": _number_or_word, "metavar": "NUMBER|auto"}
    return {"type": next(iter(parts)), "metavar": "TEXT" if str in parts else "NUMBER"}


def _number_or_word(text: str) -> float | str:
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def config_from(options: argparse.Namespace) -> TrainConfig:
    """The settings that were given, the rest at their defaults."""
    given = vars(options)

    def picked(cls: type) -> dict[str, Any]:
        names = {item.name for item in dataclasses.fields(cls)} - set(_GROUPS)
        return {name: given[name] for name in names & given.keys()}

    values = picked(TrainConfig) | {name: picked(cls) for name, (_, cls) in _GROUPS.items()}
    return TrainConfig.from_dict(values)


# -- commands


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)
    from .run_folder import RunFolder

    RunFolder.open_new(options.output, config.name)  # refuse before gigabytes are read
    inputs = {name: getattr(options, name) for name in _INPUTS}
    for name in ("checkpoint", "images", "tokenizer", "prior_images"):
        inputs[name] = str(Path(inputs[name]).absolute()) if inputs[name] else None
    return _train(config, inputs, options.output, options.device, resume=False)


def _resume(options: argparse.Namespace) -> int:
    from .run_folder import read_config

    saved = read_config(options.folder)
    if "inputs" not in saved:
        raise InputError(f"{options.folder} was not written by `apt-train run`: resume it where it was started.")
    config = TrainConfig.from_dict(saved["config"])
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps)
    return _train(config, saved["inputs"], options.folder, options.device, resume=True)


def _train(config: TrainConfig, inputs: dict[str, Any], output: Path, device: str | None, *, resume: bool) -> int:
    from .events import BusyEvent
    from .loop import train
    from .progress import Progress, stop_on_interrupt

    with Progress(device) as reading:
        reading(BusyEvent("weights", 0))
        components, images, prior_images = _load(inputs)
    with Progress(device) as progress, stop_on_interrupt(progress):
        result = train(
            components,
            images,
            config,
            prior_images=prior_images,
            output_dir=output,
            resume=resume,
            device=device,
            on_event=progress,
            record={"checkpoint": components.source, "inputs": inputs},
        )
    _say_done(result, output)
    return 0


def _load(inputs: dict[str, Any]) -> tuple[Components, ImageSet, ImageSet | None]:
    with _quiet_libraries():
        from .checkpoint import load_checkpoint
        from .dataset import load_images

        reading = {name: inputs[name] for name in ("background", "alpha_masks", "skip_bad_images")}
        images = load_images(inputs["images"], **reading)
        prior = load_images(inputs["prior_images"], **reading) if inputs["prior_images"] else None
        told = {"tokenizer": inputs["tokenizer"], "prediction_type": inputs.get("prediction_type")}
        return load_checkpoint(inputs["checkpoint"], **told), images, prior


def _say_done(result: TrainResult, output: Path) -> None:
    from .notices import count_in_words
    from .run_folder import read_config

    if not result.steps_done:
        return print("Stopped before the first step, nothing was trained: run the same command again.")
    name = read_config(output)["name"]
    if result.stopped:
        print(f"Stopped after {result.steps_done} steps, nothing is lost; go on with: apt-train resume {output}")
    print(f"LoRA: {output / name}.safetensors")
    if result.embeddings is not None:
        print(f"Embedding: {output / name}_embedding.safetensors (ComfyUI reads it from models/embeddings)")
    print(f"In a prompt, write: {result.trigger}")
    print(f"Curves and verdict: {output / 'report.md'}")
    if result.notices:
        print(f"{count_in_words(len(result.notices))}, told above: see Notices in {output / 'report.md'}")


def _report(options: argparse.Namespace) -> int:
    from .report import write_report

    print(f"Report: {write_report(options.folder)}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    with _quiet_libraries():
        from .demo import run_demo

        print(f"Sheet: {run_demo(options.output or _free_folder('runs/demo'), steps=options.steps)}")
    return 0


def _free_folder(stem: str) -> Path:
    """The first of stem-1, stem-2, ... that does not exist, so that a demo can be run again."""
    return next(path for path in (Path(f"{stem}-{n}") for n in itertools.count(1)) if not path.exists())


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own notices out of a user's terminal; ours say what matters."""
    import logging

    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers", "peft")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Command lines: options and values swapped, missing, doubled, extreme; what starts to train stops after a step."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from apt_train import cli
from apt_train.demo import demo
from apt_train.errors import InputError
from apt_train.events import StepEvent, StopTraining
from apt_train.lora_check import sheet
from apt_train.sample import trajectories
from apt_train.training import finish
from apt_train.training import train as training
from tests.command_line import actions_of
from tests.lora_files import attention_paths, kohya, random_layers
from tests.tiny import tiny_unet

from . import captions, models, states
from .case import Case
from .outcome import Wrong, check_sentence

RUN = ["run", "--checkpoint", "model", "--images", "pictures", "--output", "out", "--class-word", "toy", "--device",
    "cpu",
       "--steps", "2", "--augment-variants", "1", "--batch-size", "1", "--snapshot-every", "0",
       "--preview-every", "0"]  # fmt: skip
RESUME, REPORT = ["resume", "run", "--device", "cpu"], ["report", "run"]
CHECK = ["check", "pictures", "--resolution", "64", "--sheet", "sheet.png"]
INSPECT = ["inspect", "lora.safetensors", "--checkpoint", "model", "--class-word", "toy", "--images", "pictures",
    "--strengths", "1", "--draws", "1", "--resolution", "32", "--sample-steps", "1", "--out", "out", "--device",
           "cpu"]  # fmt: skip
DEMO = ["demo", "--output", "out", "--steps", "0"]
TEXTS = ["", " ", "-", "--", "-x", "x", "~", "~/x", "~nobody/x", "/", "/dev/null", ".", "..", "a/../b", "../x", "a\nb",
    "a\tb",
         "💥", "CON", "nul", "a" * 300, "a" * 5000, "%s", "%(prog)s", "{subject}", "{", "[", "*", "a b", "a'b", '"',
         "\\", "$HOME",
         "embedding:x", "attention", "state", "config", "log", "report", "indicator", "snapshots", "toy", ".x", "x.",
         "x.safetensors",
         "model", "pictures", "run", "run/config.json", "out", "\udcff", "\x00", "auto", "none", "None", "null",
         "true", "cpu",
         "cuda:99", "meta", "mps", "cpu:7", "xla", "red", "#fff", "#ff00ff80", "rgb(1,2)", "=", "a=b", "@x",
         "@run/config.json"]  # fmt: skip
NUMBERS = ["0", "1", "-1", "2", "3", "0.5", "-0.0", "1e308", "1e309", "1e-320", "nan", "inf", "-inf", "NaN", "1_000",
    "٣", "0x10", "1e3",
           "007", "+1", " 1", "2147483648", "9223372036854775807", "9223372036854775808", "1" + 400 * "0", "9" * 5000,
           "-" + "9" * 30,
           "1,5", "1/2", "1j", "100000000", "65"]  # fmt: skip
ENVIRONMENT: dict[str, list[str | None]] = {
    "HOME": [None, "", "/nonexistent", "\n"], "COLUMNS": ["0", "1", "-5", "x", "99999"], "WORLD_SIZE": ["2", "x", ""],
    "COMFYUI_PATH": ["", "/nonexistent", "/dev/null"], "HF_HUB_CACHE": ["", "/dev/null"], "TERM": [None, "dumb"],
    "XDG_CACHE_HOME": ["", "/dev/null"],
}  # fmt: skip


def sample(folder: Path) -> None:
    for name, target in (("model", models), ("pictures", captions), ("other", states)):
        (folder / name).mkdir()
        target.sample(folder / name)
    (folder / "other" / states.RUN).rename(folder / "run")
    unet = tiny_unet()
    save_file(kohya(random_layers(unet, attention_paths(unet), size=0.1)), folder / "lora.safetensors")


def run(folder: Path, case: Case) -> None:
    """The exit code is 0, of a check also 1, or 2 with one sentence; after a training there is a LoRA where it says."""
    said, error = io.StringIO(), io.StringIO()
    home = {"HOME": str(folder / "home")}
    with _surroundings({**home, **case.arguments.get("environment", {})}), _short_training():
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error):
            code = _exit_code(case.arguments["argv"])
    if code == 2:
        raise InputError(_sentence(error.getvalue()))
    has_findings = code == 1 and " in " in said.getvalue() and case.arguments["argv"][0] == "check"
    if code != 0 and not has_findings:
        raise Wrong(f"the exit code is {code}: {error.getvalue()[-500:]}")
    _check_lora(folder, said.getvalue())


def _exit_code(argv: list[str]) -> int:
    try:
        return cli.main(argv)
    except SystemExit as end:  # argparse after --help
        if end.code in (0, None):
            return 0
        raise


def _sentence(text: str) -> str:
    """The last thing said, without the program's name; it begins on a line of its own."""
    head, found, sentence = text.rpartition("apt-train: ")
    if not found or not sentence.endswith("\n") or head[-1:] not in ("", "\n"):
        raise Wrong(f"exit code 2 without a sentence: {text[-500:]!r}")
    return sentence[:-1]


def _check_lora(folder: Path, said: str) -> None:
    for line in said.splitlines():
        if line.startswith("LoRA: "):
            if fault := check_sentence(line):
                raise Wrong(f"the LoRA's path is no line: {fault.where}")
            place = folder / line.removeprefix("LoRA: ")
            if "\\" in line and not place.exists():  # a letter that no terminal shows is written out
                continue
            with safe_open(place, "pt") as opened:
                if not all(name.startswith("lora_") for name in opened.keys()):
                    raise Wrong(f"the LoRA holds what is none: {line}")


@contextlib.contextmanager
def _surroundings(environment: dict[str, str | None]) -> Iterator[None]:
    with mock.patch.dict(os.environ, {name: value for name, value in environment.items() if value is not None}):
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
        yield


@contextlib.contextmanager
def _short_training() -> Iterator[None]:
    """Any number of steps is a valid command: the first one ends the run.

    The report and the check-up's page are left out, which are slow, and the demo's pictures are drawn in two steps.
    """
    settings = demo.recipe()
    settings["sampling"]["steps"] = 2
    real = training.train

    def train(*arguments: Any, on_event: Callable[..., Any] | None = None, **named: Any) -> Any:
        def heard(event: Any) -> None:
            if on_event is not None:
                on_event(event)
            if isinstance(event, StepEvent):
                raise StopTraining

        return real(*arguments, on_event=heard, **named)

    with (
        mock.patch.object(training, "train", train),
        mock.patch.object(demo, "train", train),
        mock.patch.object(finish, "write_report"),
        mock.patch.object(demo, "recipe", lambda: settings),
        mock.patch.object(trajectories, "STEPS", 4),
        mock.patch.object(sheet, "sheet", lambda found: Image.new("RGB", (8, 8))),
    ):
        yield


def cases(folder: Path) -> SearchStrategy[Case]:
    argv = st.one_of(
        _altered(RUN),
        _altered(RUN),
        _altered(RUN),
        _altered(RESUME),
        _altered(REPORT),
        _altered(CHECK),
        _altered(INSPECT),
        _altered(DEMO),
        _free(),
    )
    return st.builds(Case, st.just(()), st.fixed_dictionaries({"argv": argv, "environment": _environment()}))


def _environment() -> SearchStrategy[dict[str, str | None]]:
    some = st.sampled_from(sorted(ENVIRONMENT)).flatmap(
        lambda name: st.sampled_from(ENVIRONMENT[name]).map(lambda value: {name: value})
    )
    return st.one_of(st.just({}), st.just({}), some)


def _altered(argv: list[str]) -> SearchStrategy[list[str]]:
    """A valid command line with one to three things done to it; options that the parser knows, values it does not."""
    options = _options(argv[0])
    change = st.one_of(
        st.sampled_from(options).flatmap(_given), st.sampled_from(options).flatmap(_given),
        st.tuples(st.just("drop"), st.integers(1, len(argv))), st.tuples(st.just("insert"), st.integers(1, len(argv)),
        _word()),
        st.tuples(st.just("replace"), st.integers(1, len(argv)), _word()),
    )  # fmt: skip
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _changed(argv, changes))


def _changed(argv: list[str], changes: list[tuple[Any, ...]]) -> list[str]:
    result = list(argv)
    for kind, *how in changes:
        if kind == "drop":
            del result[how[0] : how[0] + 1]
        elif kind == "insert":
            result.insert(*how)
        elif kind == "replace":
            result[how[0] : how[0] + 1] = [how[1]]
        else:
            result = _without(result, how[0]) + how
    return result


def _without(argv: list[str], option: str) -> list[str]:
    """What is given again replaces what was given, so that the smallest case shows it alone."""
    if option not in argv:
        return argv
    place = argv.index(option)
    values = next((n for n, word in enumerate(argv[place + 1 :]) if word.startswith("--")), len(argv) - place - 1)
    return argv[:place] + argv[place + 1 + values :]


def _given(option: argparse.Action) -> SearchStrategy[tuple[str, ...]]:
    names = st.sampled_from(option.option_strings)
    if option.nargs == 0 or isinstance(option, argparse.BooleanOptionalAction):
        return st.tuples(st.just("give"), names)
    values = [str(choice) for choice in option.choices or ()] or ["1"]
    numeric = option.type in (int, float) or "NUMBER" in str(option.metavar)
    value = st.one_of(st.sampled_from(NUMBERS if numeric else TEXTS), _word(), st.sampled_from(values))
    if option.nargs == "+":
        return st.tuples(st.just("give"), names, value, _word())
    return st.tuples(st.just("give"), names, value)


def _options(command: str) -> list[argparse.Action]:
    found = [action for action in actions_of(command) if action.option_strings]
    return [action for action in found if "--device" not in action.option_strings or command == "run"]


def _word() -> SearchStrategy[str]:
    return st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.text(max_size=6))


def _free() -> SearchStrategy[list[str]]:
    words = st.one_of(
        st.sampled_from(
            ["run", "resume", "check", "report", "inspect", "demo", "--help", "-h", "--version", "--steps"]
        ),
        _word(),
    )
    return st.lists(words, max_size=4)


def hostile() -> list[Case]:
    given = [
        ("--name", "attention"), ("--name", "state"), ("--name", "../x"), ("--name", "a\nb"), ("--name", "\udcff"),
        ("--identifier", "attention"), ("--identifier", "state"), ("--seed", "9" * 30), ("--steps",
        "9223372036854775808"),
        ("--rank", "100000000"), ("--batch-size", "100000000"), ("--augment-variants", "9223372036854775808"),
        ("--resolution", "100000000"), ("--learning-rate", "nan"), ("--checkpoint", "~nobody/x"), ("--checkpoint",
        "\x00"),
        ("--images", "\x00"), ("--output", "\x00"), ("--output", "a" * 5000), ("--output", "/proc/x"), ("--output",
        "~"),
        ("--output", "run"), ("--tokenizer", "\x00"), ("--background", "rgb(1,2)"), ("--device", "cpu:99999999999"),
        ("--device", "meta"), ("--preview-prompts", "\x00"), ("--background", "#fff"), ("--preview-seed", "9" * 25),
    ]  # fmt: skip
    known = {name for option in _options("run") for name in option.option_strings}
    argvs = [_changed(RUN, [("give", *pair)]) for pair in given if pair[0] in known]
    argvs += [CHECK, ["check", ""], ["check", "\x00"], ["check", "run"], [*CHECK, "--sheet", "\x00"]]
    argvs += [INSPECT, [*INSPECT, "--strengths", "1", "1"], [*INSPECT, "--strengths", "nan"], ["inspect", "\x00"],
              [*INSPECT, "--trigger", "\x00"], [*INSPECT, "--prompt", "\udcff"], [*INSPECT, "--unrelated", "\udcff"],
              [*INSPECT, "--out", "\x00"], [*INSPECT, "--seed", "-1"], [*INSPECT, "--class-word", "{subject}"],
              [*INSPECT, "--embedding", "lora.safetensors"], [*INSPECT, "--embedding", ""]]  # fmt: skip
    argvs += [RUN, RESUME, REPORT, [], ["run"], ["resume"], ["report", ""], ["report", "\x00"], ["resume", "\x00"],
              ["report", "~nobody"], ["resume", "run", "--steps", "9" * 5000], ["demo", "--steps", "-1"],
              ["demo", "--output", "\x00"], ["--help"], ["run", "--help"]]  # fmt: skip
    homes = [
        Case((), {"argv": [*RUN[:-8], "--output", "~/x"], "environment": {"HOME": home}}) for home in (None, "", "\n")
    ]
    return [*(Case((), {"argv": argv}) for argv in argvs), *homes]

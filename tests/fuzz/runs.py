"""Valid settings that meet: whole runs by the command line, refused before there is a folder, or as `promises` says.

Hand-picked are runs in which every two values of two options meet, as far as a greedy choice gets.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from apt_train import cli
from apt_train.config import TrainConfig
from apt_train.console.options import option_name
from apt_train.errors import InputError
from apt_train.events import Event, StopTraining
from apt_train.lora_check import sheet
from apt_train.presets import PRESETS, PUBLISHED
from apt_train.sample import trajectories
from apt_train.settings_field import choices_of, fields_of, groups_of, nested, types_of, words_in
from apt_train.training import train as training
from tests.blank_figures import leave_blank
from tests.tiny import tiny_unet, tiny_vae
from tests.tiny_checkpoint import (
    VOCABULARY,
    Encoder,
    Modules,
    single_file_tensors,
    tiny_modules,
    write_clip_vocabulary,
    write_diffusers_folder,
    write_safetensors,
)

from .case import Case
from .outcome import Wrong
from .promises import SIDE, Seen, check_run, check_same, predicted, state_of

BASE: dict[str, Any] = {
    "checkpoint": "sd15", "tokenizer": "words", "images": "photos", "class_word": "toy", "steps": 3, "rank": 4,
    "resolution": SIDE, "learning_rate": 1e-2, "snapshot_every": 0, "augment_variants": 2, "temperature": 100.0,
    "drift_prompts": ["a painting"], "preview_steps": 2, "balance_every": 0, "device": "cpu",
}  # fmt: skip
LONG = "a photo of {subject} " + "in the long grass, " * 5  # of two chunks
VALUES: dict[str, list[Any]] = {  # beside choices, switches and words
    "rank": [1, 8], "alpha": [0.5, 16.0], "dropout": [0.5], "min_rank": [1, 4], "bins": [1, 1000], "ema": [1.0],
    "temperature": [1e9, 1e-6], "p_max": [0.0, 1.0], "max_zoom": [1.0, 4.0], "max_degrees": [0.0, 180.0],
    "augment_variants": [1], "dist_weight": [0.0, 10.0], "attn_weight": [0.0, 10.0], "lazy_prior": [2, 3],
    "balance_every": [1, 2], "learning_rate": [1e-8], "embedding_learning_rate": [0.0, 1e-3], "beta1": [0.0],
    "beta2": [0.0], "epsilon": [1e-3], "weight_decay": [0.0, 0.5], "max_grad_norm": [0.0, 1e-3],
    "warmup_steps": [2, 9], "batch_size": [2, 4], "accumulation": [2], "resolution": [16], "bucket_multiple": [8, 16],
    "prior_preservation_weight": [0.0, 3.0], "snapshot_every": [1, 2], "preview_every": [1, 2], "steps": [2, 4],
    "preview_steps": [1, 3], "preview_guidance": [0.0, 7.5], "preview_seed": [2**64 - 1], "seed": [7, 2**64 - 1],
    "dco_beta": [1e-3, 1e6], "class_word": ["teddy bear", "wrought-iron toy with a very long name", "小熊", "dog's"],
    "identifier": ["zwx", "toy", "a-B_1"], "init_word": ["dog", "teddy bear and dog", "é"],
    "caption_template": ["{subject}", "{subject} and {subject}, on grass", LONG], "class_caption": ["", LONG],
    "unseen_prompt": ["", "a red {subject}"], "preview_prompts": [["{subject}", LONG], ["embedding:toy_subject", ""]],
    "drift_prompts": [["a toy"], ["a dog", "grass"]], "augment_kinds": [["flip"], ["affine", "flip", "color"]],
    "checkpoint": ["sdxl", "one.safetensors"], "images": ["odd", "masked", "one"], "prior_images": ["odd", "masked"],
    "preset": list(PRESETS), "background": ["#102030"], "alpha_masks": [True], "zero_terminal_snr": [True, False],
    "prediction_type": ["epsilon", "v_prediction"], "vae": ["sdxl/vae"],
}  # fmt: skip
GOES: dict[str, list[Any]] = {  # the run in two parts: stopped after a part of its events, or given fewer steps
    "cut": [0.05, 0.3, 0.7, 0.8, 0.9, 0.95, 0.99], "by": ["a signal", "its steps"],
}  # fmt: skip
FIRST: dict[str, Any] = {  # of the hand-picked, a quick one
    "kind": "dora", "images": "masked", "alpha_masks": True, "prior_images": "odd", "lazy_prior": 2, "dropout": 0.5,
    "mask_fill": True, "gradient_checkpointing": True, "channels_last": True, "cut": 0.8, "steps": 2,
}  # fmt: skip
SECONDS = 120  # for a case, which trains three times
LEFT_OUT = ["fp16", "compile_blocks"]  # refused on a CPU; takes minutes


# ---- what they are made from ---------------------------------------------------------------------------------


def sample(folder: Path) -> None:
    _models(folder)
    draws = numpy.random.default_rng(0)
    for name, sizes, modes in (
        ("photos", [(64, 64), (80, 64), (70, 70)], ["RGB"]),
        ("odd", [(200, 33), (40, 300), (47, 65), (90, 90)], ["RGBA", "L", "P", "LA"]),
        ("masked", [(64, 64), (64, 64)], ["RGBA", "RGB"]),
        ("one", [(101, 97)], ["RGB"]),
    ):
        (folder / name).mkdir()
        for number, (size, mode) in enumerate(zip(sizes, modes * len(sizes), strict=False)):
            pixels = draws.integers(0, 256, (*size, 4), numpy.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.png")
    Image.fromarray(numpy.eye(64, dtype=numpy.uint8) * 255).save(folder / "masked" / "1-mask.png")
    for name, text in (("photos/1", "a {subject} on grass, red"), ("odd/0", LONG), ("odd/1", " \n"),
                       ("odd/2", "{subject} 💥 müßig {class_word}, (red:1.2)")):  # fmt: skip
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _models(folder: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1, projection_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders: list[Encoder] = [CLIPTextModel(config), CLIPTextModelWithProjection(config)]
        for name, count in (("sd15", 1), ("sdxl", 2)):
            write_diffusers_folder(
                folder / name, Modules(name, tiny_unet(name == "sdxl"), encoders[:count], tiny_vae())
            )
    write_safetensors(folder / "one.safetensors", single_file_tensors(tiny_modules("sd15")))
    write_clip_vocabulary(folder / "words")


@functools.cache
def domains() -> dict[str, list[Any]]:
    """What an option may be given, by name: the values above, both sides of a switch, all choices and words."""
    found = {**VALUES, **GOES}
    for cls in (TrainConfig, *(types_of(TrainConfig)[name] for name in groups_of(TrainConfig))):
        for name, item in fields_of(cls).items():
            hint = types_of(cls)[name]
            switch = [True, False] if bool in (hint, *get_args(hint)) else []
            named = [*choices_of(item, hint), *words_in(hint)] if name != "augment_kinds" else []
            found[name] = [value for value in (*switch, *named, *VALUES.get(name, [])) if value not in LEFT_OUT]
    return {name: values for name, values in found.items() if name not in LEFT_OUT}


def cases(folder: Path) -> SearchStrategy[Case]:
    given = {name: st.sampled_from(values) for name, values in domains().items()}
    return st.builds(Case, st.just(()), st.fixed_dictionaries({}, optional=given))


def hostile(rows: int = 60, tries: int = 20) -> list[Case]:
    """Of some drawn rows of values the one in which most pairs meet for the first time, again and again."""
    draws, values = random.Random(0), [(name, value) for name in domains() for value in (None, *domains()[name])]
    places = [[n for n, (name, _) in enumerate(values) if name == one] for one in domains()]
    is_open, found = numpy.ones((len(values), len(values)), bool), [Case((), FIRST)]
    while len(found) < rows:
        drawn = [[draws.choice(some) for some in places] for _ in range(tries)]
        row = max(filter(lambda row: _is_valid(_given(values, row)), drawn), default=[],
                  key=lambda row: int(is_open[numpy.ix_(row, row)].sum()))  # fmt: skip
        is_open[numpy.ix_(row, row)] = False
        found += [Case((), _given(values, row))] * bool(row)
    return found


def _given(values: list[tuple[str, Any]], row: list[int]) -> dict[str, Any]:
    return {name: value for name, value in (values[n] for n in row) if value is not None}


def _is_valid(given: dict[str, Any]) -> bool:
    values = BASE | dict(PRESETS[given.get("preset", PUBLISHED)].values) | given
    if values.get("zero_terminal_snr") and values.get("prediction_type") != "v_prediction":
        return False
    with contextlib.suppress(InputError):
        return bool(TrainConfig.from_dict(nested(values, TrainConfig)))
    return False


# ---- one case ------------------------------------------------------------------------------------------------


def run(folder: Path, case: Case) -> None:
    given = BASE | {name: value for name, value in case.arguments.items() if name not in GOES}
    with _light():
        with _watched() as seen:
            _command("run", given, "--output=whole")
        check_run(folder / "whole", seen[0])
        by_steps = case.arguments.get("by") == "its steps" and not seen[0].config.reads_total_steps
        _in_two_parts(folder, given, seen[0], case.arguments.get("cut", 0.5), by_steps)
        _command("report", {}, "whole")
        pictures = {name: given[name] for name in ("class_word", "identifier", "background") if name in given}
        _command("check", pictures, given["images"])
        names = ("checkpoint", "tokenizer", "prediction_type", "vae", "zero_terminal_snr", "device", "images")
        short = {"strengths": [1.0], "draws": 1, "sample_steps": 1, "resolution": SIDE, "out": "checked"}
        lora = f"whole/{seen[0].config.name}.safetensors"
        _command("inspect", {name: given[name] for name in names if name in given} | short, lora)


def _in_two_parts(folder: Path, given: dict[str, Any], whole: Seen, cut: float, by_steps: bool) -> None:
    steps = whole.config.steps
    first = given | ({"steps": max(1, int(cut * steps))} if by_steps else {})
    with contextlib.nullcontext() if by_steps else _watched(1 + int(cut * len(whole.events))):
        _command("run", first, "--output=parts")
    if (folder / "parts" / "config.json").exists():
        _command("resume", {"device": "cpu"} | ({"steps": steps} if by_steps else {}), "parts")
    else:  # stopped while it prepared, which leaves nothing
        _command("run", given, "--output=parts")
    check_same(folder / "whole", folder / "parts", ("snapshots", "notices") if by_steps else ())


@contextlib.contextmanager
def _light() -> Iterator[None]:
    """What draws pictures for people, or measures on many of them, is short."""
    blank = mock.patch.object(sheet, "sheet", lambda found: Image.new("RGB", (8, 8)))
    with pytest.MonkeyPatch.context() as patch, mock.patch.object(trajectories, "STEPS", 4), blank:
        leave_blank(patch.setattr)
        yield


@contextlib.contextmanager
def _watched(cut: int = 0) -> Iterator[list[Seen]]:
    """The runs in the block; `cut`: each is stopped at this event, 0 at none."""
    found, train, finish = list[Seen](), training.train, training.finish

    def watched(components: Any, images: Any, config: TrainConfig, *, on_event: Any, **more: Any) -> Any:
        seen = Seen(components, images, config, state_of(components))
        found.append(seen)

        def heard(event: Event) -> None:
            on_event(event)
            seen.events.append(event)
            if len(seen.events) == cut:
                raise StopTraining

        return train(components, images, config, on_event=heard, **more)

    def finished(outcome: Any) -> Any:
        found[-1].live = predicted(outcome.run.components, outcome.run.inputs.conditioner, outcome.run.plan.dtype)
        return finish(outcome)

    with mock.patch.object(training, "train", watched), mock.patch.object(training, "finish", finished):
        yield found


def _command(command: str, given: dict[str, Any], place: str) -> None:
    """InputError: refused before there is a folder, by a sentence that names an option."""
    argv = [command, place]
    for name, value in given.items():
        if isinstance(value, bool):
            argv.append(option_name(name) if value else option_name(f"no_{name}"))
        elif isinstance(value, list):
            argv += [option_name(name), *map(str, value)]
        else:
            argv.append(f"{option_name(name)}={value}")
    code, said = _said(argv)
    sentence = said.rpartition("apt-train: ")[2].strip()
    if code == 2 and not Path("whole").exists() and any(name in sentence for name in given):
        raise InputError(sentence)
    if code != 0 and not (code == 1 and command == "check"):
        raise Wrong(f"{command} ends with {code}: {said[-600:]}")


def _said(argv: list[str]) -> tuple[int, str]:
    """The exit code, and what a terminal showed as errors. Wrong: a library spoke to the user."""
    error, logged = io.StringIO(), logging.StreamHandler(io.StringIO())
    with warnings.catch_warnings(record=True) as warned, contextlib.ExitStack() as stack:
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python does by default
        for logger in map(logging.getLogger, ("", "transformers", "diffusers", "peft", "torch")):
            logger.addHandler(logged)
            stack.callback(logger.removeHandler, logged)
        with contextlib.redirect_stderr(error):
            code = cli.main(argv)
    if warned or logged.stream.getvalue():
        raise Wrong(f"a library speaks: {[str(one.message) for one in warned]} {logged.stream.getvalue()}")
    return code, error.getvalue()

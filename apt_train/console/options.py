"""Options that several commands share, and one for every setting, made from the config's dataclasses.

Not in: the options of one command (`cli`, `lora_check.command`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from ..config import TrainConfig
from ..presets import PUBLISHED, preset_named
from ..settings_field import all_said, choices_of, fields_of, flat_values, groups_of, hindrance, nested, said, types_of
from ..wording import listed


def add_model_options(add: Callable[..., object]) -> None:
    """What a model's file may leave open, and the device. `add`: a parser's or a group's `add_argument`."""
    text = "what the model predicts, for a file that does not say so itself (else epsilon)"
    add("--prediction-type", choices=("epsilon", "v_prediction"), help=text)
    text = "whether the noise schedule ends in pure noise, for a v-prediction file that does not say so itself"
    add("--zero-terminal-snr", action=argparse.BooleanOptionalAction, help=text)
    add("--vae", help="a VAE to use instead of the model's own: a .safetensors or a diffusers folder")
    text = "folder of the CLIP vocabulary, for a single file (else $COMFYUI_PATH, else the local cache)"
    add("--tokenizer", help=text)
    add("--device", help="cpu, cuda, cuda:1, mps ... (default: CUDA or MPS if there is one)")


def add_reading_options(add: Callable[..., object]) -> None:
    """The options for reading a folder of pictures."""
    add("--background", default="white", help="colour under transparent pictures (default: white)")
    add("--alpha-masks", action="store_true", help="take transparency as the loss mask")
    add("--skip-bad-images", action="store_true", help="leave out pictures that cannot be read")


def add_config_options(parser: argparse.ArgumentParser, root: type = TrainConfig) -> None:
    """Add one option per setting, named after its field. Options that are not given are absent from the namespace."""
    add_settings(parser.add_argument_group("run").add_argument, root, fields_of(root))
    for group, item in groups_of(root).items():
        cls = types_of(root)[group]
        add_settings(parser.add_argument_group(item.metadata["title"]).add_argument, cls, fields_of(cls))


def add_settings(add_option: Callable[..., object], cls: type, names: Iterable[str]) -> None:
    """Add one option for each of these fields, likewise."""
    for name in names:
        item = fields_of(cls)[name]
        required, kind = item.default is dataclasses.MISSING, _kind(item, types_of(cls)[name])
        text = said(item).help.replace("%", "%%") + ("" if required else f" (default: {_shown(item.default)})")
        add_option(option_name(name), dest=name, required=required, default=argparse.SUPPRESS, help=text, **kind)


def option_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown_choices(cls: type, name: str) -> str:
    """The choices of a setting, as `--help` shows them."""
    return "|".join(choices_of(fields_of(cls)[name], types_of(cls)[name]))


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return shlex.join(cast("tuple[str, ...]", default)) or "none"
    return {"None": "empty", "": "empty", "True": "on", "False": "off"}.get(str(default), str(default))


def _kind(item: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """argparse's keywords for a field's type. The config checks choices and ranges, with better messages."""
    if get_origin(hint) is tuple:
        return {"nargs": "+", "action": "extend", "metavar": "TEXT"}
    parts = {str if get_origin(part) is Literal else part for part in get_args(hint) or (hint,)} - {type(None)}
    if bool in parts:
        return {"action": argparse.BooleanOptionalAction}
    if choices := choices_of(item, hint):
        return {"metavar": "|".join(choices)}
    if parts == {float, str}:
        return {"type": _number_or_word, "metavar": "NUMBER|auto"}
    return {"type": next(iter(parts)), "metavar": "TEXT" if str in parts else "NUMBER"}


def _number_or_word(text: str) -> float | str:
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def config_from(options: argparse.Namespace) -> TrainConfig:
    """The given settings over the preset's, everything else at its default."""
    values = {**preset_named(getattr(options, "preset", PUBLISHED)).values, **vars(options)}
    return TrainConfig.from_dict(nested(values, TrainConfig))


def unread(options: argparse.Namespace, config: TrainConfig) -> Iterator[str]:
    """Sentences on the options of `run` that were given, but have no effect beside the others.

    An option that switches something off or leaves it empty is never among them.
    """
    values = vars(options) | flat_values(config) | {"watch_indicator": config.measures_indicator}
    idle: dict[str, list[str]] = {}
    for name in all_said(TrainConfig):
        if getattr(options, name, None) and (reason := _why_unread(name, values)):
            idle.setdefault(reason, []).append(option_name(name))
    if getattr(options, "preview_every", 0) > config.steps:
        idle[f"in so few steps as {config.steps}"] = ["--preview-every"]
    for reason, names in idle.items():
        yield f"{listed(names, len(names))} {'does' if len(names) == 1 else 'do'} nothing {reason}."


def _why_unread(name: str, values: Mapping[str, Any]) -> str:
    """What keeps a setting from having an effect; empty: nothing."""
    by = hindrance(TrainConfig, name, values)
    if not by:
        return ""
    given = values.get(by)
    held = " ".join(cast("tuple[str, ...]", given)) if isinstance(given, tuple) else given
    place = "under" if by == "method" else "with" if given else "without"
    return f"{place} {option_name(by)} {held}" if given else f"{place} {option_name(by)}"

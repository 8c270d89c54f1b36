"""Reads and writes `config.json`: what a run is and what it was trained with.

In: the format and its required entries. Not in: what makes two runs the same (`folder`), the settings themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..disk.files import write_text
from ..disk.json_file import is_object
from ..errors import InputError
from ..names import CONFIG, clashing_file
from ..presets import PRESETS

if TYPE_CHECKING:
    from ..palette import Legend

FORMAT = 1
MOST_BYTES = 16 << 20  # of config.json, which consists mostly of a digest per picture
_TITLE, _COLOUR = re.compile(r"[A-Za-z0-9 ()_,.-]{1,60}"), re.compile(r"#[0-9a-f]{6}")
OURS = ("format", "name", "digest", "parts", "config", "num_timesteps", "dtype", "terms")  # the rest is the callers'


def read_config(path: str | Path) -> dict[str, Any]:
    """A run folder's `config.json`. InputError: it is missing, or not one of ours."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise InputError(
            f"{path} holds no run ({CONFIG} cannot be read, as it is missing): give the folder that a run was written "
            "to."
        )
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is too large to be a run's: restore it, or train again.")
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): restore it, or train again.") from error
    except (ValueError, RecursionError):
        raise InputError(f"{file} is not readable JSON: restore it, or train again.") from None
    if not is_object(content) or not is_object(content.get("config")):
        raise InputError(f"{file} holds no settings of a training run: give the folder that a run was written to.")
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise InputError(f"{file} is not of a format this version reads: use the version that wrote it.")
    _refuse_clash(file, content["config"])
    return content


def read_settings(path: str | Path) -> tuple[TrainConfig, int]:
    """A run's settings, and the length of its noise schedule (1000 if the file does not say).

    InputError: as in `read_config`, or settings that this version does not have.
    """
    content = read_config(path)
    try:
        config = TrainConfig.from_dict(content["config"])
    except InputError as error:
        raise InputError(f"{Path(path) / CONFIG} cannot be used: {error}") from None
    except (TypeError, AttributeError, OverflowError):
        raise InputError(f"{CONFIG} holds settings of the wrong kind: restore it as the run wrote it.") from None
    count = content.get("num_timesteps")
    return config, count if type(count) is int and 0 < count <= 1_000_000 else 1000


def read_terms(path: str | Path) -> dict[str, Legend]:
    """How the terms of a run's loss are shown, by name; malformed entries are dropped."""
    from ..palette import Legend  # loads numpy, which a refusal need not wait for

    terms = read_config(path).get("terms")
    said = terms.items() if is_object(terms) else ()
    return {name: Legend(legend["title"], legend["colour"]) for name, legend in said if _is_legend(legend)}


def read_preset(path: str | Path) -> str:
    """The preset that a run's settings came from; empty: none, or unknown."""
    preset = read_config(path).get("preset")
    return preset if isinstance(preset, str) and preset in PRESETS else ""


def _is_legend(legend: Any) -> bool:
    patterns = {"title": _TITLE, "colour": _COLOUR}
    return is_object(legend) and all(
        isinstance(legend.get(key), str) and pattern.fullmatch(legend[key]) for key, pattern in patterns.items()
    )


def check_complete(path: str | Path) -> None:
    """InputError if `config.json` lacks what a resumed run is compared by."""
    content = read_config(path)
    for name in ("name", "digest"):  # `dtype` may be missing: older versions did not write it, and the digest covers it
        if not isinstance(content.get(name), str):
            raise InputError(f"{Path(path) / CONFIG} does not say its {name}: restore it, or train again.")


def write_config(path: Path, content: Mapping[str, Any]) -> None:
    """Write `config.json` into a folder."""
    write_text(path / CONFIG, json.dumps({"format": FORMAT, **content}, indent=1))


def _refuse_clash(file: Path, settings: Mapping[str, Any]) -> None:
    """Earlier versions allowed such names, and wrote two things to the same file."""
    name = settings.get("identifier")
    clash = clashing_file(name) if isinstance(name, str) else None
    if clash is None:
        return
    learned = settings.get("identifier_mode", "learned") == "learned"
    do = f"write another identifier into its {CONFIG}, then resume" if learned else "train again under another name"
    raise InputError(f"{file.parent} holds a run named {name!r}, whose LoRA was overwritten by its own {clash}: {do}.")

"""Reads and writes `config.json`: what a run is and what it was trained with.

In: the format and its required entries. Not in: what makes two runs the same (`folder`), the settings themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..disk.files import write_text
from ..disk.json_file import is_object, read_small_json
from ..errors import InputError
from ..names import CONFIG, clashing_file
from ..presets import PRESETS

if TYPE_CHECKING:
    from ..palette import Legend

FORMAT = 1
MOST_BYTES = 16 << 20  # of config.json, which consists mostly of a digest per picture
_TITLE, _COLOUR = re.compile(r"[A-Za-z0-9 ()_,.-]{1,60}"), re.compile(r"#[0-9a-f]{6}")
OURS = ("format", "name", "digest", "parts", "config", "num_timesteps", "dtype", "terms")  # the rest is the callers'


@dataclass(frozen=True)
class SavedConfig:
    """A run's `config.json` as read once. `content`: all its entries."""

    file: Path
    content: dict[str, Any]

    @cached_property
    def settings(self) -> TrainConfig:
        """InputError: settings that this version does not have, or of the wrong kind."""
        try:
            return TrainConfig.from_dict(self.content["config"])
        except InputError as error:
            raise InputError(f"{self.file} cannot be used: {error}") from None
        except (TypeError, AttributeError, OverflowError):
            raise InputError(f"{CONFIG} holds settings of the wrong kind: restore it as the run wrote it.") from None

    @property
    def num_timesteps(self) -> int:
        """The length of its noise schedule; 1000 if the file does not say."""
        count = self.content.get("num_timesteps")
        return count if type(count) is int and 0 < count <= 1_000_000 else 1000

    @property
    def legends(self) -> dict[str, Legend]:
        """How the terms of its loss are shown, by name; malformed entries are dropped."""
        from ..palette import Legend  # loads numpy, which a refusal need not wait for

        terms = self.content.get("terms")
        said = terms.items() if is_object(terms) else ()
        return {name: Legend(legend["title"], legend["colour"]) for name, legend in said if _is_legend(legend)}

    @property
    def preset(self) -> str:
        """The preset that its settings came from; empty: none, or unknown."""
        preset = self.content.get("preset")
        return preset if isinstance(preset, str) and preset in PRESETS else ""

    @property
    def record(self) -> dict[str, Any]:
        """The entries that callers had stored beside the settings."""
        return {name: value for name, value in self.content.items() if name not in OURS}

    def check_complete(self) -> None:
        """InputError if it lacks what a resumed run is compared by."""
        for name in ("name", "digest"):  # older versions wrote no `dtype`, and the digest covers it
            if not isinstance(self.content.get(name), str):
                raise InputError(f"{self.file} does not say its {name}: restore it, or train again.")


def read_config(path: str | Path) -> SavedConfig:
    """A run folder's `config.json`. InputError: it is missing, or not one of ours."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise InputError(
            f"{path} holds no run ({CONFIG} cannot be read, as it is missing): give the folder that a run was written "
            "to."
        )
    try:
        content = read_small_json(file, MOST_BYTES)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): restore it, or train again.") from error
    except ValueError:
        raise InputError(f"{file} is not readable JSON: restore it, or train again.") from None
    if not is_object(content) or not is_object(content.get("config")):
        raise InputError(f"{file} holds no settings of a training run: give the folder that a run was written to.")
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise InputError(f"{file} is not of a format this version reads: use the version that wrote it.")
    _refuse_clash(file, content["config"])
    return SavedConfig(file, content)


def _is_legend(legend: Any) -> bool:
    patterns = {"title": _TITLE, "colour": _COLOUR}
    return is_object(legend) and all(
        isinstance(legend.get(key), str) and pattern.fullmatch(legend[key]) for key, pattern in patterns.items()
    )


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

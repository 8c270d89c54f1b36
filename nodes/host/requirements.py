"""Checks that ComfyUI is new enough and the pack's requirements are installed; if not, the message has the remedy."""

from __future__ import annotations

import contextlib
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ...apt_train.errors import InputError

_FILE = Path(__file__).resolve().parents[2] / "requirements.txt"
_MODULE_OF = {"pillow": "PIL"}  # distributions whose import name differs
OLDEST = (0, 15)  # the oldest ComfyUI that the pack was tried on; before 0.14 it lacks parts of the nodes' interface


def check_host() -> None:
    """InputError: this ComfyUI is too old. Without this check, a missing part of its interface would be the error.

    One that does not tell its version is accepted.
    """
    with contextlib.suppress(ImportError):
        version = str(getattr(import_module("comfyui_version"), "__version__", ""))
        number = re.match(r"(\d+)\.(\d+)", version)
        if number and (int(number[1]), int(number[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise InputError(f"APT Train needs ComfyUI {oldest} or newer, and this is {version}: update ComfyUI.")


def check_installed() -> None:
    """InputError, with the command that installs it, if something in requirements.txt is missing."""
    names = [line.partition(">=")[0] for line in _FILE.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    missing = [name for name in names if not _is_there(_MODULE_OF.get(name, name))]
    if missing:
        raise InputError(f"APT Train needs {', '.join(missing)}: run {_command()}, then restart ComfyUI.")


def _is_there(module: str) -> bool:
    """Loaded modules are not searched for: another pack's stub may have no spec to find."""
    return module in sys.modules or find_spec(module) is not None


def _command() -> str:
    """The command for this very Python; the portable release's must ignore the user's own packages."""
    alone = " -s" if "python_embeded" in sys.executable else ""
    return f'"{sys.executable}"{alone} -m pip install -r "{_FILE}"'

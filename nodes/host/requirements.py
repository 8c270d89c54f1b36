"""Checks that the pack's requirements are installed; if not, the message has the command to install them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from ...apt_train.errors import InputError

_FILE = Path(__file__).resolve().parents[2] / "requirements.txt"
_MODULE_OF = {"pillow": "PIL"}  # distributions whose import name differs


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

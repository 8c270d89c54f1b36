"""Whether what the pack computes with is installed: a clone without its requirements says so, with the command."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from ...apt_train.errors import InputError

_FILE = Path(__file__).resolve().parents[2] / "requirements.txt"
_MODULE_OF = {"pillow": "PIL"}  # where the import is called otherwise than the distribution


def check_installed() -> None:
    """InputError, with the command that installs it: something of requirements.txt is not there."""
    names = [line.partition(">=")[0] for line in _FILE.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    missing = [name for name in names if not _is_there(_MODULE_OF.get(name, name))]
    if missing:
        raise InputError(f"APT Train needs {', '.join(missing)}: run {_command()}, then restart ComfyUI.")


def _is_there(module: str) -> bool:
    """What is loaded already need not be looked for; another pack's stand-in would have no place to be found in."""
    return module in sys.modules or find_spec(module) is not None


def _command() -> str:
    """For this very Python; the portable release's must not look into the user's own packages."""
    alone = " -s" if "python_embeded" in sys.executable else ""
    return f'"{sys.executable}"{alone} -m pip install -r "{_FILE}"'

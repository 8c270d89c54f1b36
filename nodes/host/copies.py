"""Handles the pack being installed twice in `custom_nodes`: which copy is active, and what the user is told.

The first copy that the host loads is active. A later one provides no nodes, routes or scripts, because the host would
silently mix the two.
"""

from __future__ import annotations

import inspect
import logging
import sys
from pathlib import Path

from server import PromptServer

OURS = Path(__file__).resolve().parents[2]
_NODE = "APTTrain"
_OTHERS = "apt_train_other_copies"  # on the host's server, which all copies share


def first_copy() -> Path | None:
    """The folder of the copy that the host loaded before this one; None: this is the first."""
    node = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(_NODE)
    if node is None or node.__module__.startswith(__name__.removesuffix(".nodes.host.copies") + "."):
        return None
    return Path(inspect.getfile(node)).resolve().parents[1]


def step_aside(first: Path) -> None:
    """Report that this copy is not used, in the log and to the active copy."""
    logging.warning(
        "APT Train is installed twice: %s is used, %s is not. Remove one of them and restart ComfyUI.", first, OURS
    )
    setattr(PromptServer.instance, _OTHERS, [*_others(), OURS])
    _withdraw_scripts(first)


def _withdraw_scripts(first: Path) -> None:
    """Withdraw this copy's scripts: the editor would load both copies', and complain about the second."""
    served = getattr(sys.modules.get("nodes"), "EXTENSION_WEB_DIRS", {})
    for name in [name for name, folder in served.items() if Path(folder).resolve() == OURS / "web"]:
        if name == first.name:  # both folders have the same name, so ours has replaced the first
            served[name] = str(first / "web")
        else:
            del served[name]


def copy_notices() -> list[str]:
    """One sentence per other copy that the host has loaded."""
    return [
        f"APT Train is installed twice, and the copy in {OURS.name} is used: remove that or the one in "
        f"{_shown(other)}, and restart ComfyUI."
        for other in _others()
    ]


def _shown(other: Path) -> str:
    """Its folder's name, or its full path if it is not beside ours."""
    return other.name if other.parent == OURS.parent else str(other)


def _others() -> list[Path]:
    return list(getattr(PromptServer.instance, _OTHERS, ()))

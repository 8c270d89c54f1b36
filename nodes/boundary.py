"""The boundary between pack and host: a user's mistake is shown as one sentence, without folders and tracebacks.

Before a node works, the pack's requirements must be installed. What it checked when the prompt was queued is checked
once more, as the values of wires are known now.

In: the wrapper around every node's methods. Not in: the checks themselves (`checks`, and wherever the work is done).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from ..apt_train.errors import InputError
from .host.language import translated
from .host.requirements import check_installed

_METHODS = ("check_lazy_status", "execute")


class UserMistake(ValueError):
    """An InputError on its way to the host, which prefixes an exception's message with its module and name.

    For a custom node the module is its installation folder. Python's own exceptions have no such prefix.
    """


UserMistake.__module__, UserMistake.__qualname__ = "builtins", "InputError"


def speaks_plainly(node: Any) -> Any:
    """The node with its InputErrors reduced to their sentence, without the pack's traceback."""
    check = vars(node)["validate_inputs"].__func__ if "validate_inputs" in vars(node) else None
    for name in _METHODS:
        method = vars(node).get(name)
        if method is not None:
            setattr(node, name, classmethod(_plainly(method.__func__, check)))
    if check is not None:
        node.validate_inputs = classmethod(_off_the_loop(_plainly(check, None, works=False)))
    return node


def _plainly(method: Callable[..., Any], check: Callable[..., Any] | None, *, works: bool = True) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(cls: Any, **inputs: Any) -> Any:
        try:
            if works:
                check_installed()
            if check is not None:
                check(cls, **inputs)
            return method(cls, **inputs)
        except InputError as error:
            raise UserMistake(translated(str(error))) from None

    return run


def _off_the_loop(check: Callable[..., Any]) -> Callable[..., Any]:
    """The check in a thread of its own: it may read a large folder, and the host's event loop serves every page."""

    @functools.wraps(check)
    async def run(cls: Any, **inputs: Any) -> Any:
        return await asyncio.to_thread(check, cls, **inputs)

    return run

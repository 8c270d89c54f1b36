"""Where a user's mistake leaves the pack: the host shows its sentence, without the pack's folder and inner calls.

In: what every node's methods are wrapped in. Not in: the checks themselves (`checks`, and wherever the work is done).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..apt_train.errors import InputError
from .host.language import translated

_METHODS = ("validate_inputs", "check_lazy_status", "execute")


class UserMistake(ValueError):
    """An InputError on its way to the host, which puts an exception's module and name before its sentence.

    For a custom node the module is the folder it is installed in. Python's own exceptions have none there.
    """


UserMistake.__module__, UserMistake.__qualname__ = "builtins", "InputError"


def speaks_plainly(node: Any) -> Any:
    """The node, whose InputErrors reach the user as their sentence alone, with no traceback of the pack's own."""
    for name in _METHODS:
        method = vars(node).get(name)
        if method is not None:
            setattr(node, name, classmethod(_plainly(method.__func__)))
    return node


def _plainly(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(cls: Any, **inputs: Any) -> Any:
        try:
            return method(cls, **inputs)
        except InputError as error:
            raise UserMistake(translated(str(error))) from None

    return run

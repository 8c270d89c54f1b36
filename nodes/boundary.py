"""The boundary between pack and host: a user's mistake is shown as one sentence, without folders and tracebacks.

Before a node works, the pack's requirements must be installed. What it checked when the prompt was queued is checked
once more, as the values of wires are known now.

In: the wrapper around every node's methods. Not in: what inputs become (`given`), the checks themselves (`checks`, and
wherever the work is done).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from ..apt_train.errors import InputError
from .given import given
from .host.language import translated
from .host.requirements import check_installed

MayWait = Callable[[Any], Any]  # whether an input that is None is still to come
_WORKING: dict[str, MayWait] = {
    "check_lazy_status": lambda slot: getattr(slot, "lazy", False),
    "execute": lambda _slot: False,
}
_LONGEST = 1000  # characters of a sentence; beyond that it quotes what nobody reads


class UserMistake(ValueError):
    """An InputError on its way to the host, which prefixes an exception's message with its module and name.

    For a custom node the module is its installation folder. Python's own exceptions have no such prefix.
    """


UserMistake.__module__, UserMistake.__qualname__ = "builtins", "InputError"


def speaks_plainly(node: Any) -> Any:
    """The node with its InputErrors reduced to their sentence, without the pack's traceback."""
    wrapped = functools.partial(_plainly, functools.cache(node.define_schema))  # kinds and defaults do not change
    checks = [vars(node)["validate_inputs"].__func__] if "validate_inputs" in vars(node) else []
    for name, may_wait in _WORKING.items():
        if name in vars(node):
            setattr(node, name, classmethod(wrapped(may_wait, _installed, *checks, vars(node)[name].__func__)))
    if checks:
        node.validate_inputs = classmethod(_off_the_loop(wrapped(lambda _slot: True, *checks)))
    return node


def _installed(_cls: Any, **_inputs: Any) -> None:
    check_installed()


def _plainly(schema: Callable[[], Any], may_wait: MayWait, *methods: Callable[..., Any]) -> Callable[..., Any]:
    """The methods one after another; what the last one returns."""

    @functools.wraps(methods[-1])
    def run(cls: Any, **inputs: Any) -> Any:
        try:
            inputs = given(inputs, schema(), may_wait)
            return [method(cls, **inputs) for method in methods][-1]
        except InputError as error:
            raise UserMistake(translated(_shortened(str(error)))) from None

    return run


def _shortened(sentence: str) -> str:
    """The sentence without most of what it quotes, if that is long."""
    end = _LONGEST // 4
    return sentence if len(sentence) <= _LONGEST else f"{sentence[: _LONGEST - end]} ... {sentence[-end:]}"


def _off_the_loop(check: Callable[..., Any]) -> Callable[..., Any]:
    """The check in a thread of its own: it may read a large folder, and the host's event loop serves every page."""

    @functools.wraps(check)
    async def run(cls: Any, **inputs: Any) -> Any:
        return await asyncio.to_thread(check, cls, **inputs)

    return run

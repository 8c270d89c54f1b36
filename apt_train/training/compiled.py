"""Compiles the network's blocks, each by itself, for the passes of a step alone (`torch.compile`).

In: which parts are compiled, putting them in place and away again. Not in: which are the blocks (a family's `Network`),
training on without them after a failure (`loop`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

# Static shapes, so that a resumed run compiles the same code. Dropout draws what it draws uncompiled.
COMPILER: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}
# All blocks of a kind share their code, of which each width, each size of picture and the prior need a version. torch
# allows eight. It also takes for granted that blocks which share code have the same hooks.
_DYNAMO = {"cache_size_limit": 1000, "accumulated_cache_size_limit": 10_000, "skip_nnmodule_hook_guards": False}


class CompiledBlocks:
    """Blocks of a network that are compiled when they are first used. Outside `used` the network is as it was.

    `hooked`: modules whose outputs are read in a step. Compiled code would not see their hooks come and go, so they are
    called from outside it.
    """

    def __init__(self, blocks: Iterable[nn.Module], hooked: Collection[nn.Module] = ()) -> None:
        self._parts = [part for block in blocks for part in _parts(block, set(hooked))]
        self._calls: list[Any] = []
        self.failed = False  # whether the last use ended in an error, which may be the compiler's

    @contextlib.contextmanager
    def used(self) -> Generator[None]:
        """Inside the block the network calls its compiled blocks. A backward pass that recomputes belongs in it too.

        RuntimeError, perhaps only in a pass or its backward pass: this machine cannot compile.
        """
        if not self._parts:
            yield
            return
        self.failed = True
        self._calls = self._calls or [torch.compile(part.forward, **COMPILER) for part in self._parts]
        own = [vars(part).get("forward") for part in self._parts]
        try:
            for part, call in zip(self._parts, self._calls, strict=True):
                vars(part)["forward"] = call
            with _torchs_own():
                yield
            self.failed = False
        finally:
            for part, call in zip(self._parts, own, strict=True):
                vars(part).pop("forward", None) if call is None else vars(part).update(forward=call)

    def close(self) -> None:
        """Drop all compiled code: whoever compiles next would find torch's limit exceeded by ours."""
        if self._calls:
            torch.compiler.reset()
        self._parts, self._calls, self.failed = [], [], False


@contextlib.contextmanager
def _torchs_own() -> Generator[None]:
    """Inside the block torch's own settings suit us."""
    dynamo, autograd = import_module("torch._dynamo.config"), import_module("torch._functorch.config")
    # Gradient norms per term need the graph again. torch 2.4 has no such setting, and no such buffers.
    kept = {"donated_buffer": False} if hasattr(autograd, "donated_buffer") else {}
    with dynamo.patch(**_DYNAMO), autograd.patch(**kept):
        yield


def _parts(module: nn.Module, hooked: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest parts of a block that call no hooked layer, without those that are a single operation."""
    inner = set(module.modules()) - {module}
    if inner and hooked.isdisjoint(inner) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        yield module
    elif inner:
        for child in module.children():
            yield from _parts(child, hooked)

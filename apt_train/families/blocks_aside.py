"""Lets blocks of a network wait in main memory: their frozen weights visit the device while they work (ours).

A visit is a copy, so every number stays the same. It lasts until the next waiting block works, which copies ahead while
this one computes. The blocks' activations must be recomputed in the backward pass, or autograd would hold every copy.
In: moving weights. Not in: how many blocks wait, and when (`training.plan`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .swapped import pin

_Home = tuple[dict[str, Any], str, nn.Parameter]  # where a module keeps its parameters, the name there, the weight


class BlocksAside:
    """The blocks of a network on a device. `send` makes some of them wait."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._homes: dict[int, list[_Home]] = {}
        self._there: set[int] = set()
        self._hooks: list[Any] = []
        self._path = (-1, -1)  # the two last visitors
        self._followed_by: dict[tuple[int, int], int] = {}
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def waiting(self) -> int:
        return len(self._homes)

    @property
    def are_left(self) -> bool:
        """Whether more of them could wait."""
        return self.waiting < len(self._blocks)

    def send(self, count: int) -> None:
        """From now on `count` blocks, spread evenly over the network, wait in main memory."""
        for index in spread(len(self._blocks), count):
            if index not in self._homes:
                block = self._blocks[index]
                self._homes[index] = [self._sent(store, name) for store, name in _frozen(block)]
                self._hooks.append(block.register_forward_pre_hook(partial(self._visit, index)))
        self._leave(self._there)

    def end(self) -> None:
        """No block visits the device any more. Their weights are in main memory."""
        self._leave(self._there)
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def staying(self) -> Generator[None]:
        """Inside the block moving the network leaves the waiting weights where they are."""
        homes = [home for found in self._homes.values() for home in found]
        for store, name, _ in homes:
            store[name] = None
        try:
            yield
        finally:
            for store, name, weight in homes:
                store[name] = weight

    def _sent(self, store: dict[str, Any], name: str) -> _Home:
        weight = store[name]
        if weight.device.type != "cpu":
            weight = nn.Parameter(weight.detach().to("cpu"), requires_grad=False)
        pin([weight], self._device)
        store[name] = weight
        return store, name, weight

    def _visit(self, index: int, *_: Any) -> None:
        """Before a waiting block works: bring its weights, unless they were fetched ahead, and fetch the next ones."""
        self._leave(self._there - {index})
        self._bring(index)
        self._followed_by[self._path] = index
        self._path = (self._path[1], index)
        follower = self._followed_by.get(self._path)
        if follower is not None:
            self._bring(follower, ahead=True)

    def _bring(self, index: int, *, ahead: bool = False) -> None:
        if index not in self._there:
            copies = [(home, torch.empty_like(home[2], device=self._device)) for home in self._homes[index]]
            with self._copies_beside() if ahead else contextlib.nullcontext():
                for (store, name, weight), copy in copies:
                    copy.copy_(weight.detach(), non_blocking=self._copying is not None)
                    store[name] = nn.Parameter(copy, requires_grad=False)
            self._there.add(index)

    @contextlib.contextmanager
    def _copies_beside(self) -> Generator[None]:
        """Copies run beside the block's work, but after the work that used the same memory."""
        if self._copying is None:
            yield
            return
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            yield

    def _leave(self, indices: set[int]) -> None:
        if self._copying is not None:  # what is let go of, or used next, may still be arriving
            torch.cuda.current_stream(self._device).wait_stream(self._copying)
        for index in indices:
            for store, name, weight in self._homes[index]:
                store[name] = weight
        self._there = self._there - indices


def spread(length: int, count: int) -> list[int]:
    """`count` of the numbers below `length`, evenly spread."""
    return [number * length // count for number in range(count)]


def _frozen(block: nn.Module) -> list[tuple[dict[str, Any], str]]:
    stores: list[dict[str, Tensor | None]] = [part._parameters for part in cast("Iterable[Any]", block.modules())]
    found = [(store, name, weight) for store in stores for name, weight in store.items()]
    return [(store, name) for store, name, weight in found if weight is not None and not weight.requires_grad]
